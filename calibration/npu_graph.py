"""A float graph as an NPU takes it: one image at a time, and tensors that share one range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from calibration.balance import (
    BalanceGroup,
    apply_balance_scales,
    compute_balance_scales,
    find_balance_groups,
)
from calibration.graph.edit import (
    Array,
    add_constant,
    constant,
    graph_of,
    input_constant,
    only_reader,
    permutation,
    producer,
    replace,
    scalar,
    sizes,
    tidy,
)
from calibration.graph.layers import LAYOUT, Linear, expect_input, find_layers
from calibration.observe import Extremes, observe_extremes, open_observing_session
from calibration.plan import BalancePlan, LinearPlan, ProductPlan, QuantizationPlan, Range

NO_BALANCE: Mapping[str, BalancePlan] = MappingProxyType({})
# Shares of a LayerNormalization's factors that may move, as exponents.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NARROW_MARGIN = 1.1  # the same for 8 bits
MARGIN = 1.5  # room for other images: of 65,536 levels it costs half a bit, where clipping costs 8 dB
# Below, GELU is 0 to 2e-5. An NPU reads it from a table of a few hundred places over the range of its input:
# with a range as narrow as that, twelve of them in a ViT-B/16 cost 1 dB and not 8.
LOWEST_OF_GELU = -4.5
# These move numbers and change none: a file has one range for what they read and what they give.
MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Split", "Identity")


def prepare_for_npu(model: ir.Model, balance: Mapping[str, BalancePlan] = NO_BALANCE) -> ir.Model:
    """Return a copy of a canonical float graph for one image at a time, with the same results.

    All shapes are static, what no pixel changes is a constant, and the factors of each LayerNormalization
    that only linear layers read have moved into their weights: an NPU stores the factors in 8 bits.

    Args:
        model: a canonical float graph; it stays as it is.
        balance: scales of the keys and values, by the name of their linear layer.
    """
    fixed = model.clone()
    pixels = fixed.graph.inputs[0]
    shape = [1, *(size or 1 for size in (sizes(pixels) or [])[1:])]
    pixels.shape = ir.Shape(shape)
    for node in fixed.graph:
        for output in node.outputs:
            output.shape = None
    _fold_constants(fixed, np.zeros(shape, np.uint8))
    for linear in find_layers(fixed).linears.values():
        if linear.reads_pixels:
            bias = linear.center_pixels(np.array(1.0, np.float32)).astype(np.float32)
            linear.node.replace_input_with(2, add_constant(fixed.graph, f"{linear.name}.bias.centered", bias))
    for group in find_balance_groups(find_layers(fixed)):
        if group.producer.op_type == "LayerNormalization":
            _move_factors(group)
    for layer in find_narrow_layers(fixed):
        if (found := balance.get(layer.linear.name)) is not None:
            layer.divide(np.array(found.scales, np.float32))
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
    apply_balance_scales(
        group, _choose_factors(factors, np.concatenate([each.weight for each in group.linears], 1))
    )


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


# --- Keys and values, which an NPU reads in 8 bits ---


@dataclass(frozen=True)
class NarrowLayer:
    """The linear layer of the keys or the values, and the one that can multiply its scales back."""

    linear: Linear
    other: Linear  # the queries, by output feature; or the projection, by input feature
    by_input: bool

    def divide(self, scales: Array) -> None:
        """Divide the features by scales, and multiply them back in the other layer."""
        self._scale(self.linear, 1 / scales, by_input=False)
        self._scale(self.other, scales, by_input=self.by_input)

    def _scale(self, linear: Linear, scales: Array, *, by_input: bool) -> None:
        weight, bias = (constant(value) for value in linear.node.inputs[1:3])  # as they are now
        assert weight is not None  # a Linear has constants
        assert bias is not None
        arrays = (weight * (scales[:, None] if by_input else scales), bias if by_input else bias * scales)
        for index, array in enumerate(arrays, start=1):
            name = f"{linear.name}.{('weight', 'bias')[index - 1]}.balanced"
            value = add_constant(graph_of(linear.node), name, array.astype(np.float32))
            linear.node.replace_input_with(index, value)


def find_narrow_layers(model: ir.Model) -> list[NarrowLayer]:
    """Return the keys and the values that another layer can scale back, in graph order.

    An NPU multiplies two tensors of 16 bits with 8 bits of the second one: 42 dB, for each such product.
    """
    layers = find_layers(model)
    by_output = {linear.node.outputs[0]: linear for linear in layers.linears.values()}
    values = {group.producer: group.linears[0] for group in find_balance_groups(layers)}
    found = []
    for product in layers.products.values():
        (right, features), (left, others) = (_trace_features(each) for each in (product.right, product.left))
        key, query = by_output.get(right), by_output.get(left)
        if key is None:
            continue
        if product.mixes_probabilities and key.node in values:
            found.append(NarrowLayer(key, values[key.node], by_input=True))
        # The product adds up over the last axis of the queries, and the last but one of the keys.
        elif query is not None and query is not key and _meet(others, features):
            found.append(NarrowLayer(key, query, by_input=False))
    return found


def _meet(left: Array | None, right: Array | None) -> bool:
    """Return whether a product multiplies the same features, which are known."""
    if left is None or right is None:
        return False
    return np.array_equal(np.moveaxis(right, -1, -2)[..., :1, :], left[..., :1, :])


def _trace_features(value: ir.Value) -> tuple[ir.Value, Array | None]:
    """Return the tensor above the layout of another, and the feature of it at each place.

    The places are None where another operator reads the tensor on its way.
    """
    moves = []
    while (node := producer(value, *LAYOUT)) is not None:
        moves.append(node)
        value = expect_input(node, 0)
    shape = sizes(value)
    if shape is None or any(only_reader(each) is None for each in (value, *(n.outputs[0] for n in moves))):
        return value, None
    places = np.broadcast_to(np.arange(shape[-1] or 0), [size or 1 for size in shape])
    for node in reversed(moves):
        target = [size or 1 for size in sizes(node.outputs[0]) or ()]
        places = (
            places.transpose(permutation(node)) if node.op_type == "Transpose" else places.reshape(target)
        )
    return value, places


# --- Plan ---


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
    images, prepared = list(images), prepare_for_npu(model)  # seen twice
    narrow = {
        str(each.linear.node.outputs[0].name): each.linear.name for each in find_narrow_layers(prepared)
    }
    extremes = observe_extremes(prepared, list(narrow), images, threads=threads) if narrow else {}
    balance = {narrow[name]: _make_scales(found) for name, found in extremes.items()}
    model = prepare_for_npu(model, balance)
    groups, ranges = group_tensors(model), dict[str, Range]()
    makers = {str(output.name): node for node in model.graph for output in node.outputs}
    gelus = find_gelu_inputs(model)
    observed = [name for name in groups if makers[name].op_type not in MOVES]
    extremes = observe_extremes(model, observed, images, threads=threads)
    bounds = {name: (float(each.low.min()), float(each.high.max())) for name, each in extremes.items()}
    for name, (low, high) in bounds.items():
        maker, first = makers[name], groups[name]
        if maker.op_type == "Softmax":  # whatever the image
            low, high = 0.0, 1.0
        else:
            low, high = MARGIN * low, MARGIN * high
            if name in gelus:
                low = max(low, LOWEST_OF_GELU)
        found = Range.of(low, high, 16)
        if maker.op_type == "DequantizeLinear":  # the pixels, which are 8-bit numbers
            scale, zero_point = scalar(maker.inputs[1]), scalar(maker.inputs[2])
            found = Range(scale=float(scale or 1), zero_point=int(zero_point or 0))
        ranges[first] = _unite(ranges[first], found) if first in ranges else found
    layers = find_layers(model)
    rights = {name: groups[str(each.right.name)] for name, each in layers.products.items()}
    return QuantizationPlan(
        target="npu",
        linears={name: LinearPlan(precision="int8") for name in layers.linears},
        products={
            name: ProductPlan(precision="int8", right=_narrow(ranges[each])) for name, each in rights.items()
        },
        activations=ranges,
        balance=balance,
    )


def find_gelu_inputs(model: ir.Model) -> set[str]:
    """Return the tensors that GELUs alone read.

    Args:
        model: as `prepare_for_npu` returns it.
    """
    read = {value for node in model.graph if node.op_type == "Gelu" for value in node.inputs[:1] if value}
    return {str(value.name) for value in read if all(use.node.op_type == "Gelu" for use in value.uses())}


def _make_scales(found: Extremes) -> BalancePlan:
    """Return scales that give every feature of the keys, or the values, the same range."""
    scales = compute_balance_scales(found.low, found.high, 1.0)
    return BalancePlan(strength=1.0, scales=tuple(float(f"{each:.6g}") for each in scales))


def _narrow(wide: Range) -> Range:
    """Return the range of 8 bits for one of 16, with less room for other images."""
    share = NARROW_MARGIN / MARGIN * wide.scale
    return Range.of(-wide.zero_point * share, (wide.largest - wide.zero_point) * share)


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
            joined = (
                node.inputs if node.op_type == "Concat" else node.inputs[:1] if node.op_type in MOVES else ()
            )
            parts = [find(str(value.name)) for value in joined if value is not None and producer(value)]
            for part in parts:
                first[find(part)] = find(parts[0])
            if parts:
                first[str(output.name)] = parts[0]
    return {name: find(name) for name in first}
