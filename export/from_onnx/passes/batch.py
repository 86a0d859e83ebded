"""A graph for one fixed number of images → the same graph for any number of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph import (
    Array,
    GraphError,
    add_constant,
    attribute,
    constant,
    graph_of,
    insert,
    shape_constant,
)

SYMBOL = "batch"
FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Place:
    """Where the batch lies in a shape: in which axis, and after how many steps of what shares that axis.

    In `[tokens, N, width]` it is axis 1 with 1 before, in `[tokens · N, width]` axis 0 with `tokens`.
    """

    axis: int
    before: int = 1


class _Freeing:
    """Walks the graph from the input, following where the batch goes; all shapes are static meanwhile."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        (pixels,) = model.graph.inputs
        self.pixels = pixels
        self.size = _shape(pixels)[0]
        self.places: dict[ir.Value, Place] = {pixels: Place(0)}
        self.changes = 0

    def run(self) -> int:
        for node in list(self.model.graph):
            if any(value in self.places for value in node.inputs if value is not None):
                self._visit(node)
        for value, place in self.places.items():
            value.shape = self._freed(value, place)
        return self.changes

    def _freed(self, value: ir.Value, place: Place) -> ir.Shape:
        shape: list[int | str | None] = list(_shape(value))
        pure = place.before == 1 and shape[place.axis] == self.size
        shape[place.axis] = SYMBOL if pure else None
        return ir.Shape(shape)

    def _visit(self, node: ir.Node) -> None:
        rule = getattr(self, f"_{node.op_type.lower()}", None)
        place = rule(node) if rule is not None else self._element_wise(node)
        for output in node.outputs:
            self.places[output] = place

    def _of_first(self, node: ir.Node) -> Place:
        """The place in the data input; the batch must not come in by another one."""
        place = self._place(node, 0)
        if place is None or any(value in self.places for value in node.inputs[1:] if value is not None):
            raise self._lost(node)
        return place

    def _place(self, node: ir.Node, index: int) -> Place | None:
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.places.get(value)

    def _lost(self, node: ir.Node) -> GraphError:
        return GraphError(
            f"expected to follow the batch through the graph, lost it at {node.op_type} ({node.name}); "
            "export the model with a dynamic batch and the usual operators of a Vision Transformer"
        )

    # One rule for each operator that does not treat its input element by element. -------------------------

    def _element_wise(self, node: ir.Node) -> Place:
        (output,) = node.outputs
        rank = len(_shape(output))
        found = {
            Place(place.axis + rank - len(_shape(value)), place.before)
            for value in node.inputs
            if value is not None and (place := self.places.get(value)) is not None
        }
        same = [
            value
            for value in node.inputs
            if value in self.places and len(_shape(value)) > 0 and value is not None
        ]
        if len(found) != 1 or not any(_shape(value) == _shape(output) for value in same):
            raise self._lost(node)
        (place,) = found
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.places:
                self._narrow(node, index, place.axis - rank)
        return place

    def _narrow(self, node: ir.Node, index: int, axis: int) -> None:
        """A constant that was spread over the batch is cut to one image's part, which broadcasts."""
        value = node.inputs[index]
        assert value is not None
        shape = _shape(value)
        if len(shape) < -axis or shape[axis] == 1:
            return
        node.replace_input_with(index, self._one_image(node, value, axis))

    def _one_image(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        array = constant(value)
        if array is None:
            raise self._lost(node)
        one = np.take(array, [0], axis=axis)
        if array.shape[axis] != self.size or not np.array_equal(np.broadcast_to(one, array.shape), array):
            raise self._lost(node)
        self.changes += 1
        return add_constant(graph_of(node), str(value.name), one)

    def _conv(self, node: ir.Node) -> Place:
        return self._on_axis(node, 0)

    _maxpool = _averagepool = _globalaveragepool = _batchnormalization = _conv

    def _gemm(self, node: ir.Node) -> Place:
        if attribute(node, "transA", 0):
            raise self._lost(node)
        return self._on_axis(node, 0)

    def _on_axis(self, node: ir.Node, axis: int) -> Place:
        place = self._of_first(node)
        if place.axis != axis:
            raise self._lost(node)
        return place

    def _matmul(self, node: ir.Node) -> Place:
        (output,) = node.outputs
        rank, found = len(_shape(output)), set()
        for index, value in enumerate(node.inputs):
            place = self._place(node, index)
            if value is None or place is None:
                continue
            inner = len(_shape(value))
            contracted = inner - 1 if index == 0 else inner - 2
            if place.axis == contracted or (index == 1 and place.axis == inner - 1):
                raise self._lost(node)
            found.add(Place(place.axis + rank - inner, place.before))
        if len(found) != 1:
            raise self._lost(node)
        (place,) = found
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.places and place.axis < rank - 2:
                self._narrow(node, index, place.axis - rank)
        return place

    def _transpose(self, node: ir.Node) -> Place:
        place = self._of_first(node)
        rank = len(_shape(node.outputs[0]))
        perm = list(attribute(node, "perm", range(rank)[::-1]))
        return Place(perm.index(place.axis), place.before)

    def _layernormalization(self, node: ir.Node) -> Place:
        place, rank = self._of_first(node), len(_shape(node.outputs[0]))
        if place.axis >= attribute(node, "axis", -1) % rank:
            raise self._lost(node)
        return place

    def _softmax(self, node: ir.Node) -> Place:
        place, rank = self._of_first(node), len(_shape(node.outputs[0]))
        if place.axis == attribute(node, "axis", -1) % rank:
            raise self._lost(node)
        return place

    _logsoftmax = _softmax

    def _reducemean(self, node: ir.Node) -> Place:
        place, inner = self._of_first(node), _shape(node.inputs[0])
        axes = {axis % len(inner) for axis in _axes(node) or range(len(inner))}
        if place.axis in axes:
            raise self._lost(node)
        gone = 0 if attribute(node, "keepdims", 1) else sum(axis < place.axis for axis in axes)
        return Place(place.axis - gone, place.before)

    _reducesum = _reducemax = _reducemin = _reducel2 = _reducemean

    def _gather(self, node: ir.Node) -> Place:
        place = self._of_first(node)
        axis = attribute(node, "axis", 0) % len(_shape(node.inputs[0]))
        if axis == place.axis:
            raise self._lost(node)
        return Place(place.axis + (len(_shape(node.inputs[1])) - 1 if axis < place.axis else 0), place.before)

    def _concat(self, node: ir.Node) -> Place:
        found = {self.places[value] for value in node.inputs if value in self.places and value is not None}
        rank = len(_shape(node.outputs[0]))
        if len(found) != 1 or attribute(node, "axis", 0) % rank == next(iter(found)).axis:
            raise self._lost(node)
        (place,) = found
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.places:
                node.replace_input_with(index, self._spread(node, value, place))
        return place

    def _spread(self, node: ir.Node, value: ir.Value, place: Place) -> ir.Value:
        """A constant beside the batch, such as the class token: one image's part, expanded to the batch."""
        if place.before != 1:
            raise self._lost(node)
        graph, name = graph_of(node), str(value.name)
        one = self._one_image(node, value, place.axis)
        rest = _shape(value)
        axes = dict.fromkeys(("start", "end"), 0) | {"end": 1}
        batch = insert(node, "Shape", [self.pixels], name=SYMBOL, shape=[1], dtype=ir.DataType.INT64, **axes)
        parts = [
            *([shape_constant(graph, rest[: place.axis])] if place.axis else []),
            batch,
            *([shape_constant(graph, rest[place.axis + 1 :])] if rest[place.axis + 1 :] else []),
        ]
        target = insert(
            node, "Concat", parts, name=f"{name}.shape", shape=[len(rest)], dtype=ir.DataType.INT64, axis=0
        )
        spread = insert(
            node, "Expand", [one, target], name=f"{name}.expanded", shape=rest, dtype=value.dtype or FLOAT
        )
        self.places[spread] = place
        return spread

    def _slice(self, node: ir.Node) -> Place:
        place = self._of_first(node)
        if _shape(node.inputs[0])[place.axis] != _shape(node.outputs[0])[place.axis]:
            raise self._lost(node)
        return place

    def _split(self, node: ir.Node) -> Place:
        place = self._of_first(node)
        if attribute(node, "axis", 0) % len(_shape(node.inputs[0])) == place.axis:
            raise self._lost(node)
        return place

    def _expand(self, node: ir.Node) -> Place:
        place, inner, outer = self._of_first(node), _shape(node.inputs[0]), _shape(node.outputs[0])
        shifted = Place(place.axis + len(outer) - len(inner), place.before)
        target = [1 if axis == shifted.axis else size for axis, size in enumerate(outer)]
        node.replace_input_with(1, shape_constant(graph_of(node), target))
        return shifted

    def _unsqueeze(self, node: ir.Node) -> Place:
        place, rank = self._of_first(node), len(_shape(node.outputs[0]))
        new = {axis % rank for axis in _axes(node) or ()}
        kept = [axis for axis in range(rank) if axis not in new]
        return Place(kept[place.axis], place.before)

    def _squeeze(self, node: ir.Node) -> Place:
        place, inner = self._of_first(node), _shape(node.inputs[0])
        axes = _axes(node)
        gone = (
            {axis % len(inner) for axis in axes} if axes else {i for i, size in enumerate(inner) if size == 1}
        )
        if place.axis in gone:
            raise self._lost(node)
        return Place(place.axis - sum(axis < place.axis for axis in gone), place.before)

    def _flatten(self, node: ir.Node) -> Place:
        return self._regrouped(node)

    def _reshape(self, node: ir.Node) -> Place:
        place = self._regrouped(node)
        target = [-1 if axis == place.axis else size for axis, size in enumerate(_shape(node.outputs[0]))]
        node.replace_input_with(1, shape_constant(graph_of(node), target))
        node.attributes.pop("allowzero", None)
        self.changes += 1
        return place

    def _regrouped(self, node: ir.Node) -> Place:
        """The axis of the new shape with the batch: as many elements come before it as in the old one."""
        place = self._of_first(node)
        inner, outer = _shape(node.inputs[0]), _shape(node.outputs[0])
        before = math.prod(inner[: place.axis]) * place.before
        found = []
        for axis, size in enumerate(outer):
            steps, rest = divmod(before, math.prod(outer[:axis]))
            if steps and not rest and size % (steps * self.size) == 0:
                found.append(Place(axis, steps))
        if not found:
            raise self._lost(node)
        # For a batch of one several axes may fit: the features, last, never hold it, and an axis of its
        # own is likeliest.
        last = len(outer) - 1
        return min(
            found,
            key=lambda each: (
                each.axis == last,
                outer[each.axis] != self.size,
                each.before != 1,
                each.axis != place.axis,
                each.axis,
            ),
        )


def free_batch(model: ir.Model) -> int:
    """Reshape targets, class tokens and the like no longer name the number of images.

    Raises:
        GraphError: naming the node where the batch could not be followed.
    """
    return _Freeing(model).run()


def _shape(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None or not value.shape.is_static():
        raise GraphError(
            f"expected the shape of {value.name if value else 'an input'!r} to be known, found none"
        )
    return [int(size) for size in value.shape.numpy()]


def _axes(node: ir.Node) -> Sequence[int] | None:
    """The axes of a reduction or a squeeze, from the attribute (older opsets) or the second input."""
    found: Array | None = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return attribute(node, "axes", None) if found is None else found.reshape(-1).tolist()
