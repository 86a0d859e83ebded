"""Write a plan for an NPU: quantized numbers between all operators, so that each of them runs there.

An NPU takes an operator when QuantizeLinear and DequantizeLinear stand around it. Activations have 16 bits: a
range is the extremes of the calibration images, and its 65,536 levels make a rule for it unnecessary. Weights
have 8 bits per output channel, and biases 32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    constant,
    insert,
    sizes,
    tidy,
)
from calibration.graph.layers import expect_input, find_layers
from calibration.npu_graph import MOVES, find_narrow_layers, group_tensors, prepare_for_npu
from calibration.plan import LinearPlan, PlanError, QuantizationPlan, Range
from calibration.weights import MOST_BIAS, quantize_weight

FACTORS = 127  # the largest factor of a LayerNormalization, above and below the zero point of 128
_WEIGHTED = {
    "Gemm": 1,
    "Conv": 0,
    "ConvTranspose": 1,
}  # operators with weights, and the axis of their outputs


def write_npu_plan(model: ir.Model, plan: QuantizationPlan) -> ir.Model:
    """Return a graph for an NPU with the plan written in.

    Args:
        model: a canonical float graph; it stays as it is.
        plan: of target "npu".

    Raises:
        PlanError: when the plan does not fit the graph, or asks for what an NPU does not run.
    """
    check_npu_plan(model, plan)
    written = prepare_for_npu(model, plan.balance)
    groups = group_tensors(written)
    check_ranges(groups, plan)
    _Writer(written, groups, plan).write()
    tidy(written)
    return written


def check_npu_plan(model: ir.Model, plan: QuantizationPlan) -> None:
    """Refuse a plan that names other layers than the graph has, and one with work that no NPU does.

    Raises:
        PlanError: naming the layer.
    """
    if plan.merging:
        raise PlanError(
            "target npu merges no tokens, whose places an NPU would have to compute; leave it out"
        )
    layers = find_layers(model)
    for planned, present in ((plan.linears, layers.linears), (plan.products, layers.products)):
        if different := sorted(set(planned) ^ set(present)):
            raise PlanError(
                f"expected the layers of the graph in the plan, found a difference: {different[0]!r}"
            )
    widths = {
        each.linear.name: each.linear.weight.shape[1] for each in find_narrow_layers(prepare_for_npu(model))
    }
    for name, balance in plan.balance.items():
        if len(balance.scales) != widths.get(name):
            raise PlanError(
                f"{name}: expected scales for the features of keys or values, found {len(balance.scales)}"
            )
    for name, product in plan.products.items():
        if product.right is None or product.right.bits != 8 or product.left is not None:
            raise PlanError(f"{name}: target npu has a range of 8 bits for the right operand alone")
    for name, linear in plan.linears.items():
        if linear != LinearPlan(precision="int8"):
            raise PlanError(
                f"{name}: target npu has every linear layer in int8 and no other field; remove them"
            )


def check_ranges(groups: Mapping[str, str], plan: QuantizationPlan) -> None:
    """Refuse a plan whose ranges are not those of a graph.

    Raises:
        PlanError: naming a tensor without a range, or a range without a tensor.
    """
    wanted, given = set(groups.values()), set(plan.activations)
    if missing := sorted(wanted - given):
        raise PlanError(f"the plan has no range for the tensor {missing[0]!r} ({len(missing)} are missing)")
    if unknown := sorted(given - wanted):
        raise PlanError(f"the plan has a range for {unknown[0]!r}, and the graph no such tensor")


class _Writer:
    """Writes constants as integers, and a pair behind every operator."""

    def __init__(self, model: ir.Model, groups: Mapping[str, str], plan: QuantizationPlan) -> None:
        self.graph, self.products = model.graph, plan.products
        self.ranges = {name: plan.activations[first] for name, first in groups.items()}
        self.parameters: dict[Range, list[ir.Value]] = {}
        self.constants: dict[tuple[ir.Value, Range], ir.Value] = {}

    def write(self) -> None:
        """Write all of them; the constants first, since a bias has the scale of what its layer reads."""
        nodes = [node for node in self.graph if node.op_type != "DequantizeLinear"]
        for node in nodes:
            self._write_constants(node)
        for node in nodes:
            self._change_widths(node)
        for node in nodes:
            for output in node.outputs:
                if output.dtype == ir.DataType.FLOAT:
                    self._write_pair(node, output)

    # --- Constants ---

    def _write_constants(self, node: ir.Node) -> None:
        arrays = {i: array for i, value in enumerate(node.inputs) if (array := constant(value)) is not None}
        arrays = {index: array for index, array in arrays.items() if array.dtype == np.float32}
        if 1 in arrays and node.op_type in _WEIGHTED:
            self._write_weight(node, arrays.pop(1), arrays.pop(2, None))
        if 1 in arrays and node.op_type == "LayerNormalization":
            self._write_factors(node, arrays.pop(1), arrays.pop(2, None))
        for index, array in arrays.items():
            value = expect_input(node, index)
            chosen = self.ranges[str(node.outputs[0].name)]
            if node.op_type != "Concat":
                chosen = Range.of(float(array.min()), float(array.max()), 16)
            if (value, chosen) not in self.constants:
                integers = chosen.quantize(array).astype(np.uint16)
                stored = add_constant(self.graph, f"{value.name}.uint16", integers)
                self.constants[value, chosen] = self._insert_read(node, stored, chosen, str(value.name))
            node.replace_input_with(index, self.constants[value, chosen])

    def _write_weight(self, node: ir.Node, weight: Array, bias: Array | None) -> None:
        """Store a weight in int8 with one scale per output channel, and its bias in int32."""
        axis, input_scale = _WEIGHTED[node.op_type], self._input_range(node).scale
        matrix = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
        bias = np.zeros(matrix.shape[1]) if bias is None else bias.astype(np.float64).reshape(-1)
        # A scale too small for its bias would be that of weights that hardly differ from zero.
        least = np.maximum(np.abs(bias) / (input_scale * MOST_BIAS), 1e-30).astype(np.float32)
        stored, scale = quantize_weight(matrix, "npu", least=least)
        moved = np.moveaxis(weight, axis, -1).shape
        stored = np.ascontiguousarray(np.moveaxis(stored.reshape(moved), -1, axis))
        self._read_integers(node, 1, stored, scale, axis=axis)
        bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
        self._read_integers(node, 2, np.rint(bias / bias_scale).astype(np.int32), bias_scale, axis=0)

    def _write_factors(self, node: ir.Node, factors: Array, bias: Array | None) -> None:
        """Store the factors of a LayerNormalization in uint8: an NPU leaves one with int8 to the CPU."""
        scale = np.maximum(np.abs(factors).max() / FACTORS, np.float32(1e-30)).astype(np.float32)
        stored = (np.rint(factors / scale) + 128).astype(np.uint8)
        self._read_integers(node, 1, stored, scale, zero_point=128)
        bias_scale = np.float32(self._input_range(node).scale) * scale
        bias = np.zeros(len(factors)) if bias is None else bias.astype(np.float64)
        bias_scale = np.maximum(bias_scale, np.abs(bias).max() / MOST_BIAS).astype(np.float32)
        self._read_integers(node, 2, np.rint(bias / bias_scale).astype(np.int32), bias_scale)

    def _read_integers(
        self, node: ir.Node, index: int, stored: Array, scale: Array, *, zero_point: int = 0, **axis: int
    ) -> None:
        """Let a node read stored integers at one of its inputs; a bias that it lacks is added."""
        part = ("weight", "bias")[index - 1]
        name = f"{node.name}.{part}"
        zeros = np.full(scale.shape, zero_point, stored.dtype)
        given = {str(stored.dtype): stored, "scale": scale, "zero_point": zeros}
        inputs = [add_constant(self.graph, f"{name}.{what}", array) for what, array in given.items()]
        read = insert(
            node, "DequantizeLinear", inputs, name=f"{name}.float", shape=stored.shape, dtype=None, **axis
        )
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, read)

    def _input_range(self, node: ir.Node) -> Range:
        """Return the range of a node's first input as the node reads it."""
        return _widen(self.ranges[str(expect_input(node, 0).name)])

    # --- Activations ---

    def _change_widths(self, node: ir.Node) -> None:
        """Give an operator 16 bits of a tensor of 8, and the right operand of a product 8 bits."""
        if (product := self.products.get(str(node.name))) is not None and product.right is not None:
            right = expect_input(node, 1)
            narrow = self._insert_pair(node, right, product.right, f"{right.name}.narrow")
            node.replace_input_with(1, narrow)
            return
        if node.op_type in MOVES or node.op_type == "Concat":
            return
        for index, value in enumerate(node.inputs):
            chosen = None if value is None else self.ranges.get(str(value.name))
            if value is not None and chosen is not None and chosen.bits == 8:
                wide = self._insert_pair(node, value, _widen(chosen), f"{value.name}.wide")
                node.replace_input_with(index, wide)

    def _write_pair(self, node: ir.Node, output: ir.Value) -> None:
        """Store the output of an operator in its range; what reads it, or leaves the graph, is read again."""
        uses, name = list(output.uses()), str(output.name)
        read = self._insert_pair(node, output, self.ranges[name], name)
        for reader, index in uses:
            reader.replace_input_with(index, read)
        if output.is_graph_output():
            self.graph.outputs[list(self.graph.outputs).index(output)] = read
            output.name, read.name = f"{name}.exact", name

    def _insert_pair(self, node: ir.Node, value: ir.Value, chosen: Range, name: str) -> ir.Value:
        """Return the value behind a pair; nodes are sorted when all are there."""
        dtype = ir.DataType.UINT16 if chosen.bits == 16 else ir.DataType.UINT8
        inputs, shape = [value, *self._add_parameters(chosen, name)], sizes(value)
        label = f"{name}.uint{chosen.bits}"
        stored = insert(node, "QuantizeLinear", inputs, name=label, shape=shape, dtype=dtype)
        return self._insert_read(node, stored, chosen, name)

    def _insert_read(self, node: ir.Node, stored: ir.Value, chosen: Range, name: str) -> ir.Value:
        inputs = [stored, *self._add_parameters(chosen, name)]
        return insert(node, "DequantizeLinear", inputs, name=f"{name}.float", shape=sizes(stored))

    def _add_parameters(self, chosen: Range, name: str) -> list[ir.Value]:
        """Return scale and zero point of a range as initializers, the same ones for the same range."""
        if chosen not in self.parameters:
            zero_point = np.array(chosen.zero_point, np.uint16 if chosen.bits == 16 else np.uint8)
            given = {"scale": np.array(chosen.scale, np.float32), "zero_point": zero_point}
            found = [add_constant(self.graph, f"{name}.{part}", array) for part, array in given.items()]
            self.parameters[chosen] = found
        return self.parameters[chosen]


def _widen(chosen: Range) -> Range:
    """Return the range of 16 bits that spans one of 8."""
    low, high = ((end - chosen.zero_point) * chosen.scale for end in (0, chosen.largest))
    return chosen if chosen.bits == 16 else Range.of(low, high, 16)
