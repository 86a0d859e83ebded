"""QuantizeLinear and DequantizeLinear pairs of linear layers and attention products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    graph_of,
    insert,
    only_reader,
    replace,
    reuse_constant,
    sizes,
    stand_in,
)
from calibration.graph.layers import LAYOUT, Linear, Product
from calibration.plan import LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range
from calibration.weights import quantize_weight

# Subtracted from pixels: as exact as 0, and the rounding errors of the weights are not multiplied by it.
PIXEL_CENTER = 128
MOST_BIAS = 2**30  # half of int32; the other half is for the sums


def _approximate_gelu(above: ir.Node | None) -> None:
    """Use the faster tanh form of a GELU that is quantized: its error is 5e-4, a step is 50 times that."""
    if above is not None and above.op_type == "Gelu" and above.domain == "":
        above.attributes["approximate"] = ir.AttrString("approximate", "tanh")


class PairWriter:
    """Writer of the pairs of a plan; a tensor that several layers read with one range is quantized once."""

    def __init__(self, plan: QuantizationPlan) -> None:
        self.plan = plan
        self.pairs: dict[tuple[ir.Value, Range], ir.Value] = {}

    def linear(self, linear: Linear, plan: LinearPlan) -> None:
        """Quantize the input, the weight and the bias of a linear layer.

        Raises:
            PlanError: without an input range, or when the bias does not fit int32.
        """
        node, graph, name = linear.node, graph_of(linear.node), linear.name
        _approximate_gelu(linear.input.producer())
        bias = linear.bias.astype(np.float64)
        if linear.reads_pixels:
            input_scale = 1.0
            self._center_pixels(linear)
            bias = bias + PIXEL_CENTER * linear.weight.astype(np.float64).sum(axis=0)
        elif plan.input is None:
            raise PlanError(f"{name}: the plan says int8 and gives no input range")
        elif plan.per_token is not None:
            input_scale = plan.input.scale
            node.replace_input_with(0, self._per_token(linear, plan.input, plan.per_token, bias))
            bias = np.zeros_like(bias)
        else:
            input_scale = plan.input.scale
            node.replace_input_with(0, self.quantized(linear.input, plan.input, node))
        weight, scale = self._weight(linear, bias, input_scale)
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        integers = np.rint(bias / bias_scale)
        for index, (part, array, scales) in enumerate(
            (("weight", weight, scale), ("bias", integers.astype(np.int32), bias_scale)), start=1
        ):
            stored = add_constant(graph, f"{name}.{part}.{array.dtype}", array)
            factors = add_constant(graph, f"{name}.{part}.scale", scales)
            # Zero points of 0 are the default, but without them ONNX Runtime does not fuse the Gemm.
            zeros = add_constant(graph, f"{name}.{part}.zero_point", np.zeros(len(scales), array.dtype))
            float_again = insert(
                node,
                "DequantizeLinear",
                [stored, factors, zeros],
                name=f"{name}.{part}.float",
                shape=array.shape,
                axis=array.ndim - 1,
            )
            node.replace_input_with(index, float_again)

    def _weight(self, linear: Linear, bias: Array, input_scale: float) -> tuple[Array, Array]:
        """Return int8 weights and their scales, at which the bias fits into int32 beside the sums.

        Weights of an output channel that hardly differ from zero would have a scale too small for its bias.
        """
        weight, scale = quantize_weight(linear.weight, self.plan.target)
        least = np.abs(bias) / (input_scale * MOST_BIAS)
        if (least <= scale).all():
            return weight, scale
        if linear.weight.any() and least.max() > scale.max():
            raise PlanError(
                f"{linear.name}: the bias does not fit int32 at input scale {input_scale}; keep it in float32"
            )
        return quantize_weight(linear.weight, self.plan.target, np.maximum(scale, least))

    def product(self, product: Product, plan: ProductPlan) -> None:
        """Quantize both inputs of an attention product.

        Raises:
            PlanError: without a range for one of them.
        """
        if plan.left is None or plan.right is None:
            raise PlanError(f"{product.name}: the plan says int8 and gives no range for both inputs")
        for index, (value, chosen) in enumerate(((product.left, plan.left), (product.right, plan.right))):
            product.node.replace_input_with(index, self.quantized(value, chosen, product.node))

    def quantized(self, value: ir.Value, chosen: Range, reader: ir.Node) -> ir.Value:
        """Return the value behind a pair. Layout changes above it move bytes, so a pair precedes them too."""
        moves: list[ir.Node] = []
        source = value
        while (
            (above := source.producer()) is not None
            and above.op_type in LAYOUT
            and only_reader(source) is not None
        ):
            moves.append(above)
            upper = above.inputs[0]
            assert upper is not None  # Reshape and Transpose have their first input
            source = upper
        if moves and len(source.uses()) == 1:
            moves[-1].replace_input_with(0, self._pair(source, chosen, moves[-1]))
        return self._pair(value, chosen, reader)

    def _per_token(self, linear: Linear, chosen: Range, floor: float, bias: Array) -> ir.Value:
        """Quantize each row in units of its own peak; the product is multiplied by it, then biased.

        A QuantizeLinear with one scale per row would save the multiplication, and ONNX Runtime runs it; but
        other runtimes take a pair with two different scales for one fake quantization, and fail.
        """
        node, graph, name, value = linear.node, graph_of(linear.node), linear.name, linear.input
        above, shape = value.producer(), sizes(value)
        rows = value
        if above is None or above.op_type != "Gelu":  # Gelu's largest magnitude is its largest value
            rows = insert(node, "Abs", [value], name=f"{name}.magnitude", shape=shape)
        last = reuse_constant(graph, "axis.last", np.array([-1], np.int64))
        least = add_constant(graph, f"{name}.least_peak", np.array(floor, np.float32))
        peak = insert(node, "ReduceMax", [rows, last], name=f"{name}.row_max", shape=[None, 1], keepdims=1)
        peak = insert(node, "Max", [peak, least], name=f"{name}.peak", shape=[None, 1])
        factor = insert(node, "Reciprocal", [peak], name=f"{name}.factor", shape=[None, 1])
        unit = insert(node, "Mul", [value, factor], name=f"{name}.unit", shape=shape)
        self._scale_output(linear, peak, bias)
        return self._pair(unit, chosen, node)

    @staticmethod
    def _scale_output(linear: Linear, peak: ir.Value, bias: Array) -> None:
        """Multiply the linear's rows by their peaks again, and add the bias in float."""
        name, output, graph = linear.name, linear.node.outputs[0], graph_of(linear.node)
        uses = list(output.uses())
        last = output.is_graph_output()
        at = ir.node("Identity", [output]) if last else uses[0].node
        if last:
            graph.append(at)
        scaled = insert(at, "Mul", [output, peak], name=f"{name}.scaled", shape=sizes(output))
        added = add_constant(graph, f"{name}.bias.float32", bias.astype(np.float32))
        total = insert(at, "Add", [scaled, added], name=f"{name}.biased", shape=sizes(output))
        stand_in(total, output, uses)
        if last:
            graph.outputs[list(graph.outputs).index(output)] = total
            graph.remove(at, safe=True)

    def _pair(self, value: ir.Value, chosen: Range, before: ir.Node) -> ir.Value:
        if (value, chosen) not in self.pairs:
            graph = graph_of(before)
            shape, name = sizes(value), str(value.name)
            scale, zero = self._parameters(graph, name, chosen.scale, chosen.zero_point)
            stored = insert(
                before,
                "QuantizeLinear",
                [value, scale, zero],
                name=f"{name}.uint8",
                shape=shape,
                dtype=ir.DataType.UINT8,
            )
            self.pairs[value, chosen] = insert(
                before, "DequantizeLinear", [stored, scale, zero], name=f"{name}.float", shape=shape
            )
        return self.pairs[value, chosen]

    def _center_pixels(self, linear: Linear) -> None:
        """Turn Cast(uint8) into DequantizeLinear with scale 1 and zero point 128: no rounding at all."""
        cast = linear.input.producer()
        assert cast is not None  # reads_pixels has looked
        scale, zero = self._parameters(graph_of(cast), "pixels", 1.0, PIXEL_CENTER)
        centered = insert(
            linear.node,
            "DequantizeLinear",
            [cast.inputs[0], scale, zero],
            name="pixels.centered",
            shape=sizes(linear.input),
        )
        replace(linear.input, centered)

    @staticmethod
    def _parameters(graph: ir.Graph, name: str, scale: float, zero_point: int) -> tuple[ir.Value, ir.Value]:
        factor = add_constant(graph, f"{name}.scale", np.array(scale, np.float32))
        return factor, add_constant(graph, f"{name}.zero_point", np.array(zero_point, np.uint8))
