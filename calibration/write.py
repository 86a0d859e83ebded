"""Write a plan into a float graph as QuantizeLinear and DequantizeLinear pairs; standard operators only.

The order matters: scales, corrections and split columns are exact changes of the float graph, and the pairs
are written last, around the weights that result. The form with pairs is ONNX's own for a quantized model;
ONNX Runtime fuses them into integer kernels, which `calibration.measure.verify` checks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from calibration.balance import apply_balance_scales, find_balance_groups, leaves_graph
from calibration.graph.edit import (
    Array,
    add_constant,
    graph_of,
    insert,
    only_reader,
    producer,
    reuse_constant,
    sizes,
    stand_in,
    tidy,
)
from calibration.graph.layers import LAYOUT, GraphLayers, Linear, Product, expect_input, find_layers
from calibration.graph.memory import release_memory
from calibration.plan import LinearPlan, PlanError, ProductPlan, QuantizationPlan, Range
from calibration.split import find_mlp_to_split, find_planned_splits, split_float_columns
from calibration.token_merging.write_merging import write_merging
from calibration.weights import MOST_BIAS, quantize_weight
from calibration.write_npu import write_npu_plan
from runtime.model_file.targets import Target

FEW = 16  # linears whose float weights are in memory at a time, where they are read from a file


def write_plan(model: ir.Model, plan: QuantizationPlan) -> ir.Model:
    """Return a copy of the float graph with the plan written in; the float graph stays as it is.

    Args:
        model: a canonical float graph.
        plan: precision and ranges of each layer.

    Raises:
        PlanError: when the plan does not fit the graph, see `check_plan_fits_graph`.
    """
    if plan.target == "npu":
        return write_npu_plan(model, plan)
    quantized = write_merging(model, plan.merging) if plan.merging else model.clone()
    layers = find_layers(quantized)
    check_plan_fits_graph(layers, plan)
    for group in find_balance_groups(layers):
        if (balance := plan.balance.get(group.name)) is not None:
            apply_balance_scales(group, np.array(balance.scales, np.float32))
    linears = _write_corrections_and_columns(quantized, plan)
    layers = find_layers(quantized)  # with the weights as they are now
    writer = _PairWriter(plan.target)
    _write_products(writer, layers, plan)
    for index, (name, linear) in enumerate(layers.linears.items()):
        if index % FEW == 0:
            release_memory(quantized)
        if (chosen := linears.get(name)) is None:
            continue
        if chosen.precision == "int8":
            writer.write_linear(linear, chosen)
        elif chosen.precision == "float16":
            _store_in_half(linear)
    tidy(quantized)
    return quantized


# --- Check a plan against a graph ---


def check_plan_fits_graph(layers: GraphLayers, plan: QuantizationPlan) -> None:
    """Refuse a plan that does not fit a graph; its merging is checked where it is written.

    Raises:
        PlanError: for a layer or a balance that the graph does not have, an int8 layer without a range, and
            scales, corrections or columns that do not fit their layer.
    """
    for kind, planned, present in (
        ("linear layer", plan.linears, layers.linears),
        ("attention product", plan.products, layers.products),
    ):
        if unknown := [name for name in planned if name not in present]:
            raise PlanError(f"the plan names the {kind} {unknown[0]!r}, the graph has: {', '.join(present)}")
    _check_balance(layers, plan)
    for name, product in plan.products.items():
        if product.precision == "int8" and (product.left is None or product.right is None):
            raise PlanError(f"{name}: the plan says int8 and gives no range for both inputs")
    for name, chosen in plan.linears.items():
        _check_linear(layers, layers.linears[name], chosen, plan.target)


def _check_balance(layers: GraphLayers, plan: QuantizationPlan) -> None:
    groups = {group.name: group for group in find_balance_groups(layers)}
    for name, balance in plan.balance.items():
        if name not in groups:
            graph = graph_of(next(iter(layers.linears.values())).node)
            if any(node.name == name and leaves_graph(node.outputs[0]) for node in graph):
                raise PlanError(
                    f"the plan balances {name!r}, whose numbers are an output of the graph (the embedding): "
                    'take it out of "balance", or leave --embedding out'
                )
            raise PlanError(f"the plan balances {name!r}, the graph has these places: {', '.join(groups)}")
        width = groups[name].linears[0].weight.shape[0]
        if len(balance.scales) != width or min(balance.scales) <= 0:
            raise PlanError(f"{name}: expected {width} positive scales, found {len(balance.scales)}")


def _check_linear(layers: GraphLayers, linear: Linear, plan: LinearPlan, target: Target) -> None:
    name, (inputs, outputs) = linear.name, linear.weight.shape
    if plan.correction and len(plan.correction) != outputs:
        raise PlanError(f"{name}: expected {outputs} corrections, found {len(plan.correction)}")
    if plan.ratios and len(plan.ratios) != outputs:
        raise PlanError(f"{name}: expected {outputs} ratios, found {len(plan.ratios)}")
    if plan.ratios and min(plan.ratios) <= 0:
        raise PlanError(f"{name}: expected ratios above 0, found {min(plan.ratios):g}")
    if plan.ratios and target == "any-cpu" and min(plan.ratios) < 1:
        raise PlanError(
            f"{name}: the smallest ratio is {min(plan.ratios):g}, and target any-cpu needs 1 or more, "
            "or pairs of weights exceed 16 bits on a CPU without VNNI"
        )
    columns = plan.float_columns
    if columns and (
        find_mlp_to_split(layers, linear) is None or not 0 <= min(columns) <= max(columns) < inputs
    ):
        raise PlanError(f"{name}: float_columns must be hidden features behind a Gelu, 0 to {inputs - 1}")
    if plan.precision == "int8" and plan.input is None and not linear.reads_pixels:
        raise PlanError(f"{name}: the plan says int8 and gives no input range")


# --- Exact changes of the float graph, and weights in float16 ---


def _write_corrections_and_columns(model: ir.Model, plan: QuantizationPlan) -> dict[str, LinearPlan]:
    """Return the plans of the linears as they are then: without the outputs that were split off."""
    linears = dict(plan.linears)
    for name, linear in find_layers(model).linears.items():
        if correction := plan.linears[name].correction if name in plan.linears else ():
            bias = (linear.bias + np.array(correction)).astype(np.float32)
            corrected = add_constant(graph_of(linear.node), f"{name}.bias.corrected", bias)
            linear.node.replace_input_with(2, corrected)
    for mlp, columns in find_planned_splits(find_layers(model), plan.linears):
        split_float_columns(mlp, columns)
        first = linears.get(mlp.first.name)
        if first is not None and first.ratios:
            left = np.delete(np.array(first.ratios), columns)
            linears[mlp.first.name] = replace(first, ratios=tuple(left.tolist()))
    return linears


def _store_in_half(linear: Linear) -> None:
    """Store the weight in float16, in front of a Cast that ONNX Runtime does once, when it opens the file."""
    if np.abs(linear.weight).max(initial=0) > np.finfo(np.float16).max:
        raise PlanError(f"{linear.name}: its weights exceed float16 (65504); give it precision float32")
    half = linear.weight.astype(np.float16)
    stored = add_constant(graph_of(linear.node), f"{linear.name}.weight.float16", half)
    name, shape = f"{linear.name}.weight.float32", list(half.shape)
    weight = insert(linear.node, "Cast", [stored], name=name, shape=shape, to=int(ir.DataType.FLOAT))
    linear.node.replace_input_with(1, weight)


# --- Pairs of QuantizeLinear and DequantizeLinear ---


class _PairWriter:
    """Writes the pairs of a plan; a tensor that several layers read with one range is quantized once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.pairs: dict[tuple[ir.Value, Range], ir.Value] = {}

    def write_linear(self, linear: Linear, plan: LinearPlan) -> None:
        """Quantize the input, the weight and the bias of a linear layer; refuse a bias that exceeds int32."""
        node, graph, name = linear.node, graph_of(linear.node), linear.name
        gelu = producer(linear.input, "Gelu")
        if gelu is not None and gelu.domain == "":
            # The faster tanh form of a GELU that is quantized: its error is 5e-4, a step is 50 times that.
            gelu.attributes["approximate"] = ir.AttrString("approximate", "tanh")
        bias = linear.bias.astype(np.float64)
        if linear.reads_pixels:
            input_scale = 1.0
            bias = linear.center_pixels(np.array(input_scale, np.float32))
        else:
            assert plan.input is not None  # check_plan_fits_graph
            input_scale = plan.input.scale
            if plan.per_token is not None:
                node.replace_input_with(0, self._quantize_rows(linear, plan.input, plan.per_token, bias))
                bias = np.zeros_like(bias)
            else:
                node.replace_input_with(0, self._quantize_value(linear.input, plan.input, node))
        weight, scale = self._quantize_weight(linear, plan, bias, input_scale)
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        integers = np.rint(bias / bias_scale)
        parts = (("weight", weight, scale), ("bias", integers.astype(np.int32), bias_scale))
        for index, (part, array, scales) in enumerate(parts, start=1):
            full, shape = f"{name}.{part}", array.shape
            stored = add_constant(graph, f"{full}.{array.dtype}", array)
            factors = add_constant(graph, f"{full}.scale", scales)
            # Zero points of 0 are the default, but without them ONNX Runtime does not fuse the Gemm.
            zeros = add_constant(graph, f"{full}.zero_point", np.zeros(len(scales), array.dtype))
            inputs, axis = [stored, factors, zeros], array.ndim - 1
            read = insert(node, "DequantizeLinear", inputs, name=f"{full}.float", shape=shape, axis=axis)
            node.replace_input_with(index, read)

    def _quantize_weight(
        self, linear: Linear, plan: LinearPlan, bias: Array, input_scale: float
    ) -> tuple[Array, Array]:
        """Return int8 weights and their scales, at which the bias fits into int32 beside the sums.

        Weights of an output channel that hardly differ from zero would have a scale too small for its bias.
        """
        ratio = np.array(plan.ratios, np.float32) if plan.ratios else 1.0
        weight, scale = quantize_weight(linear.weight, self.target, ratio=ratio)
        least = np.abs(bias) / (input_scale * MOST_BIAS)
        if (least <= scale).all():
            return weight, scale
        if linear.weight.any() and least.max() > scale.max():
            raise PlanError(
                f"{linear.name}: the bias does not fit int32 at input scale {input_scale}; keep it in float32"
            )
        return quantize_weight(linear.weight, self.target, ratio=ratio, least=np.maximum(scale, least))

    def write_product(self, product: Product, plan: ProductPlan) -> None:
        """Quantize both inputs of an attention product."""
        for index, (value, chosen) in enumerate(((product.left, plan.left), (product.right, plan.right))):
            assert chosen is not None  # check_plan_fits_graph
            product.node.replace_input_with(index, self._quantize_value(value, chosen, product.node))

    def _quantize_value(self, value: ir.Value, chosen: Range, reader: ir.Node) -> ir.Value:
        """Return the value behind a pair; one more above its layout changes lets them move single bytes."""
        moves: list[ir.Node] = []
        source = value
        # Another reader of the source would get rounded numbers.
        while (above := producer(source, *LAYOUT)) is not None and only_reader(source) is not None:
            moves.append(above)
            source = expect_input(above, 0)
        if moves and len(source.uses()) == 1:
            moves[-1].replace_input_with(0, self._insert_pair(source, chosen, moves[-1]))
        return self._insert_pair(value, chosen, reader)

    def _quantize_rows(self, linear: Linear, chosen: Range, floor: float, bias: Array) -> ir.Value:
        """Quantize each row in units of its own peak; the product is multiplied by it, then biased.

        A QuantizeLinear with one scale per row would save the multiplication, and ONNX Runtime runs it; but
        other runtimes take a pair with two different scales for one fake quantization, and fail.
        """
        node, graph, name, value = linear.node, graph_of(linear.node), linear.name, linear.input
        rows, shape = value, sizes(value)
        if producer(value, "Gelu") is None:  # Gelu's largest magnitude is its largest value
            rows = insert(node, "Abs", [value], name=f"{name}.magnitude", shape=shape)
        last = reuse_constant(graph, "axis.last", np.array([-1], np.int64))
        least = add_constant(graph, f"{name}.least_peak", np.array(floor, np.float32))
        peak = insert(node, "ReduceMax", [rows, last], name=f"{name}.row_max", shape=[None, 1], keepdims=1)
        peak = insert(node, "Max", [peak, least], name=f"{name}.peak", shape=[None, 1])
        factor = insert(node, "Reciprocal", [peak], name=f"{name}.factor", shape=[None, 1])
        unit = insert(node, "Mul", [value, factor], name=f"{name}.unit", shape=shape)
        _scale_output(linear, peak, bias)
        return self._insert_pair(unit, chosen, node)

    def _insert_pair(self, value: ir.Value, chosen: Range, before: ir.Node) -> ir.Value:
        if (value, chosen) not in self.pairs:
            shape, name, uint8 = sizes(value), str(value.name), ir.DataType.UINT8
            parameters = _add_parameters(graph_of(before), name, chosen.scale, chosen.zero_point)
            inputs = [value, *parameters]
            stored = insert(before, "QuantizeLinear", inputs, name=f"{name}.uint8", shape=shape, dtype=uint8)
            inputs = [stored, *parameters]
            read = insert(before, "DequantizeLinear", inputs, name=f"{name}.float", shape=shape)
            self.pairs[value, chosen] = read
        return self.pairs[value, chosen]


def _write_products(writer: _PairWriter, layers: GraphLayers, plan: QuantizationPlan) -> None:
    for name, product in layers.products.items():
        if name in plan.products and plan.products[name].precision == "int8":
            writer.write_product(product, plan.products[name])


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


def _add_parameters(graph: ir.Graph, name: str, scale: float, zero_point: int) -> tuple[ir.Value, ir.Value]:
    """Return the scale and the zero point of a range of uint8 as initializers."""
    factor = add_constant(graph, f"{name}.scale", np.array(scale, np.float32))
    return factor, add_constant(graph, f"{name}.zero_point", np.array(zero_point, np.uint8))
