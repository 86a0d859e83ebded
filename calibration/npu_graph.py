"""A float graph as an NPU takes it: one image at a time, and tensors that share one range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from calibration.balance import BalanceGroup, apply_balance_scales, find_balance_groups
from calibration.graph.edit import (
    Array,
    add_constant,
    constant,
    graph_of,
    input_constant,
    producer,
    replace,
    scalar,
    tidy,
)
from calibration.graph.layers import find_layers
from calibration.observe import observe_extremes, open_observing_session
from calibration.plan import LinearPlan, QuantizationPlan, Range

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of a LayerNormalization's factors that may move, as exponents
MARGIN = 1.5  # room for other images: of 65,536 levels it costs half a bit, where clipping costs 8 dB
# These move numbers and change none: a file has one range for what they read and what they give.
MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Split", "Identity")


def prepare_for_npu(model: ir.Model) -> ir.Model:
    """Return a copy of a canonical float graph for one image at a time, with the same results.

    All shapes are static, what no pixel changes is a constant, and the factors of each LayerNormalization
    that only linear layers read have moved into their weights: an NPU stores the factors in 8 bits.
    """
    fixed = model.clone()
    pixels = fixed.graph.inputs[0]
    shape = [1, *list(pixels.shape or ())[1:]]
    pixels.shape = ir.Shape(shape)
    for node in fixed.graph:
        for output in node.outputs:
            output.shape = None
    _fold_constants(fixed, np.zeros([int(size) for size in shape], np.uint8))
    for linear in find_layers(fixed).linears.values():
        if linear.reads_pixels:
            bias = linear.center_pixels(np.array(1.0, np.float32)).astype(np.float32)
            linear.node.replace_input_with(2, add_constant(fixed.graph, f"{linear.name}.bias.centered", bias))
    for group in find_balance_groups(find_layers(fixed)):
        if group.producer.op_type == "LayerNormalization":
            _move_factors(group)
    tidy(fixed)
    return fixed


def _move_factors(group: BalanceGroup) -> None:
    """Move factors and bias of a LayerNormalization into the linear layers that read it."""
    node, graph = group.producer, graph_of(group.producer)
    factors = input_constant(node, 1)
    bias = input_constant(node, 2)
    assert factors is not None  # find_balance_groups
    if bias is not None:
        node.replace_input_with(2, add_constant(graph, f"{node.name}.bias.moved", np.zeros_like(bias)))
        for linear in group.linears:
            total = (linear.bias + bias.astype(np.float64) @ linear.weight).astype(np.float32)
            linear.node.replace_input_with(2, add_constant(graph, f"{linear.name}.bias.moved", total))
    apply_balance_scales(group, _choose_factors(factors, np.concatenate([each.weight for each in group.linears], 1)))


def _choose_factors(factors: Array, weight: Array) -> Array:
    """Return which share of the factors moves into the weights: that with the least noise of both in 8 bits.

    The noise is that of normalized activations, whose features have a mean square of 1.
    """
    found = []
    for strength in STRENGTHS:
        rest = np.abs(factors.astype(np.float64)) ** (1 - strength)
        step = max(rest.max() / 127, 1e-30)
        kept = np.maximum(np.rint(rest / step), 1) * step  # on the grid of 8 bits, which holds it exactly
        scales = np.where(factors == 0, 1.0, factors / kept)
        noise = np.square(kept).sum() * np.square(np.abs(weight * scales[:, None]).max(axis=0)).sum()
        found.append((float(noise), scales))
    return np.asarray(min(found, key=lambda each: each[0])[1])


def _fold_constants(model: ir.Model, image: Array) -> None:
    """Replace what depends on the number of images alone by constants, computed in a run."""
    known: set[ir.Value] = set()
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        if node.op_type == "Shape" or all(value in known or constant(value) is not None for value in given):
            known.update(node.outputs)
    ends = [value for value in known if any(use.node.outputs[0] not in known for use in value.uses())]
    if ends:
        session = open_observing_session(model, [str(value.name) for value in ends], threads=1)
        names, feed = [str(value.name) for value in ends], {session.get_inputs()[0].name: image}
        for value, array in zip(ends, session.run(names, feed), strict=True):
            replace(value, add_constant(model.graph, f"{value.name}.constant", array))
    tidy(model)


def decide_npu_plan(
    model: ir.Model, images: Iterable[Array], *, threads: int | None = None
) -> QuantizationPlan:
    """Return the plan of an NPU: a range of 16 bits for each group of tensors, the extremes of the images.

    Args:
        model: a canonical float graph.
        images: batches of `uint8 [N, H, W, 3]`; they are streamed.
        threads: CPU threads; None takes every core that this process may use.

    Raises:
        GraphError: when there is no image, or a tensor is not finite.
    """
    model = prepare_for_npu(model)
    groups, ranges = group_tensors(model), dict[str, Range]()
    makers = {str(output.name): node for node in model.graph for output in node.outputs}
    observed = [name for name in groups if makers[name].op_type not in MOVES]
    for name, (low, high) in observe_extremes(model, observed, images, threads=threads).items():
        maker, first = makers[name], groups[name]
        if maker.op_type == "Softmax":  # whatever the image
            low, high = 0.0, 1.0
        else:
            low, high = MARGIN * low, MARGIN * high
        found = Range.of(low, high, 16)
        if maker.op_type == "DequantizeLinear":  # the pixels, which are 8-bit numbers
            scale, zero_point = scalar(maker.inputs[1]), scalar(maker.inputs[2])
            found = Range(scale=float(scale or 1), zero_point=int(zero_point or 0))
        ranges[first] = _unite(ranges[first], found) if first in ranges else found
    linears = {name: LinearPlan(precision="int8") for name in find_layers(model).linears}
    return QuantizationPlan(target="npu", linears=linears, activations=ranges)


def _unite(one: Range, other: Range) -> Range:
    """Return a range of 16 bits that holds both."""
    ends = [(end - each.zero_point) * each.scale for each in (one, other) for end in (0, each.largest)]
    return Range.of(min(ends), max(ends), 16)


def group_tensors(model: ir.Model) -> Mapping[str, str]:
    """Return, for every float tensor between two operators, the name of the first that shares its range.

    What an operator moves shares the range of what it reads, and parts that are joined share one.

    Args:
        model: as `prepare_for_npu` returns it.
    """
    first: dict[str, str] = {}

    def find(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for node in model.graph:
        for output in node.outputs:
            if output.dtype != ir.DataType.FLOAT:
                continue
            find(str(output.name))
            joined = node.inputs if node.op_type == "Concat" else node.inputs[:1] if node.op_type in MOVES else ()
            parts = [find(str(value.name)) for value in joined if producer(value) is not None]
            for part in parts:
                first[find(part)] = find(parts[0])
            if parts:
                first[str(output.name)] = parts[0]
    return {name: find(name) for name in first}
