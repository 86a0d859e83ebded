"""Write a plan into a float graph as pairs of QuantizeLinear and DequantizeLinear, standard operators only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.graph import Array, add_constant, graph_of, insert, only_reader, replace, sizes, tidy
from calibration.plan import LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range
from calibration.sites import LAYOUT, Linear, Product, find_sites
from calibration.weights import quantize_weight

PIXEL_CENTRE = (
    128  # subtracted from pixels: as exact as 0, and weights' rounding errors are not multiplied by it
)


def write_plan(model: ir.Model, plan: QuantizationPlan) -> ir.Model:
    """A copy of the float graph with the plan written in; the float graph stays as it is.

    Raises:
        PlanError: when the plan names a layer that the graph does not have, or gives an int8 layer no range.
    """
    quantized = model.clone()
    sites = find_sites(quantized)
    for kind, planned, present in (
        ("linear layer", plan.linears, sites.linears),
        ("attention product", plan.products, sites.products),
    ):
        if unknown := [name for name in planned if name not in present]:
            raise PlanError(f"the plan names the {kind} {unknown[0]!r}, the graph has: {', '.join(present)}")
    writer = _Writer(plan)
    for name, product in sites.products.items():
        if (each := plan.products.get(name)) is not None and each.precision == "int8":
            writer.product(product, each)
    for name, linear in sites.linears.items():
        if (chosen := plan.linears.get(name)) is not None and chosen.precision == "int8":
            writer.linear(linear, chosen)
    tidy(quantized)
    return quantized


class _Writer:
    """Places the pairs; a tensor that several layers read with one range is quantised once."""

    def __init__(self, plan: QuantizationPlan) -> None:
        self.plan = plan
        self.pairs: dict[tuple[ir.Value, Range], ir.Value] = {}

    def linear(self, linear: Linear, plan: LinearPlan) -> None:
        node, graph, name = linear.node, graph_of(linear.node), linear.name
        weight, scale = quantize_weight(linear.weight, self.plan.target)
        bias = linear.bias.astype(np.float64)
        if linear.reads_pixels:
            input_scale = 1.0
            self._center_pixels(linear)
            bias = bias + PIXEL_CENTRE * linear.weight.astype(np.float64).sum(axis=0)
        elif plan.input is None:
            raise PlanError(f"{name}: the plan says int8 and gives no input range")
        else:
            input_scale = plan.input.scale
            node.replace_input_with(0, self.quantized(linear.input, plan.input, node))
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        integers = np.rint(bias / bias_scale)
        if np.abs(integers).max(initial=0) >= 2**31:
            raise PlanError(
                f"{name}: the bias does not fit int32 at input scale {input_scale}; keep it in float32"
            )
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

    def product(self, product: Product, plan: ProductPlan) -> None:
        if plan.left is None or plan.right is None:
            raise PlanError(f"{product.name}: the plan says int8 and gives no range for both inputs")
        for index, (value, chosen) in enumerate(((product.left, plan.left), (product.right, plan.right))):
            product.node.replace_input_with(index, self.quantized(value, chosen, product.node))

    def quantized(self, value: ir.Value, chosen: Range, reader: ir.Node) -> ir.Value:
        """The value behind a Q/DQ pair. Changes of layout above it move bytes: a pair stands before them too."""
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

    def _pair(self, value: ir.Value, chosen: Range, before: ir.Node) -> ir.Value:
        if (value, chosen) not in self.pairs:
            graph = graph_of(before)
            scale, zero = self._parameters(graph, str(value.name), chosen.scale, chosen.zero_point)
            shape, name = sizes(value), str(value.name)
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
        """Cast(uint8) → DequantizeLinear with scale 1 and zero point 128: no rounding at all."""
        cast = linear.input.producer()
        assert cast is not None  # reads_pixels has looked
        scale, zero = self._parameters(graph_of(cast), "pixels", 1.0, PIXEL_CENTRE)
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
        arrays: tuple[Array, Array] = np.array(scale, np.float32), np.array(zero_point, np.uint8)
        return add_constant(graph, f"{name}.scale", arrays[0]), add_constant(
            graph, f"{name}.zero_point", arrays[1]
        )
