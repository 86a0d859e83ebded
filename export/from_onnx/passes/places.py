"""Where the batch lies in each value of a graph, while a graph for one batch becomes one for any batch."""

from __future__ import annotations

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
    replace,
    shape_constant,
)

SYMBOL = "batch"


@dataclass(frozen=True)
class Place:
    """Where the batch lies in a shape: in which axis, and after how many steps of what shares that axis.

    In `[tokens, N, width]` it is axis 1 with 1 before, in `[tokens · N, width]` axis 0 with `tokens`.
    """

    axis: int
    before: int = 1


class Walk:
    """State of a walk from the input: the place of the batch in each value. All shapes are static.

    Attributes:
        pixels: the graph's input.
        size: the number of images that the graph was fixed to.
        places: the place of each value that holds the batch; the others are the same for every image.
        changes: how many places of the graph were changed so far.
    """

    def __init__(self, model: ir.Model) -> None:
        (self.pixels,) = model.graph.inputs
        self.size = shape_of(self.pixels)[0]
        self.places: dict[ir.Value, Place] = {self.pixels: Place(0)}
        self.changes = 0

    def place(self, node: ir.Node, index: int) -> Place | None:
        """Return the place of an input; None where it is absent or the same for every image."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.places.get(value)

    def of_first(self, node: ir.Node) -> Place:
        """Return the place in the data input; the batch must not come in by another one."""
        place = self.place(node, 0)
        if place is None or any(value in self.places for value in node.inputs[1:] if value is not None):
            raise self.lost(node)
        return place

    def lost(self, node: ir.Node) -> GraphError:
        """Return the error for a node behind which the batch cannot be followed."""
        return GraphError(
            f"expected to follow the batch through the graph, lost it at {node.op_type} ({node.name}); "
            "export the model with a dynamic batch and the usual operators of a Vision Transformer"
        )

    def narrow(self, node: ir.Node, axis: int) -> None:
        """Cut the constants that were spread over the batch to one image's part, which broadcasts.

        Args:
            node: reads the constants.
            axis: of the batch, counted from the end.
        """
        for index, value in enumerate(node.inputs):
            if value is None or value in self.places:
                continue
            shape = shape_of(value)
            if len(shape) >= -axis and shape[axis] != 1:
                node.replace_input_with(index, self.one_image(node, value, axis))

    def one_image(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """Return one image's part of a constant that is the same for every image."""
        array = constant(value)
        one = None if array is None else repeated(array, axis, self.size)
        if one is None or array is None or array.shape[axis] != self.size:
            raise self.lost(node)
        self.changes += 1
        return add_constant(graph_of(node), str(value.name), one)

    def regrouped(self, node: ir.Node, source: ir.Value, shape: Sequence[int], place: Place) -> ir.Value:
        """Insert Reshape(source, shape) before the node; `shape[place.axis]` is computed, for any batch."""
        target = shape_constant(graph_of(node), [-1 if i == place.axis else n for i, n in enumerate(shape)])
        value = insert(node, "Reshape", [source, target], name=f"{node.name}.regrouped", shape=shape)
        self.places[value] = place
        return value

    def stands_for(self, new: ir.Value, old: ir.Value) -> None:
        """Let the readers of `old` read `new`, whose place is known."""
        replace(old, new)
        self.changes += 1


def repeated(array: Array, axis: int, times: int) -> Array | None:
    """Return the first of `times` equal parts along the axis, `[…, size / times, …]`; None if they differ."""
    axis %= array.ndim
    part, rest = divmod(array.shape[axis], times)
    if rest:
        return None
    split = array.reshape(*array.shape[:axis], times, part, *array.shape[axis + 1 :])
    one = np.take(split, [0], axis=axis)
    if not np.array_equal(np.broadcast_to(one, split.shape), split):
        return None
    return np.asarray(one.reshape(*array.shape[:axis], part, *array.shape[axis + 1 :]))


def shape_of(value: ir.Value | None) -> list[int]:
    """Return the static shape of a value.

    Raises:
        GraphError: where it is not known.
    """
    if value is None or value.shape is None or not value.shape.is_static():
        raise GraphError(
            f"expected the shape of {value.name if value else 'an input'!r} to be known, found none"
        )
    return [int(size) for size in value.shape.numpy()]


def rank_of(value: ir.Value | None) -> int:
    """Return the number of axes of a value."""
    return len(shape_of(value))


def axes_of(node: ir.Node) -> Sequence[int] | None:
    """Return the axes of a reduction or a squeeze: the attribute (older opsets), or the second input."""
    found: Array | None = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed: Sequence[int] | None = (
        attribute(node, "axes", None) if found is None else found.reshape(-1).tolist()
    )
    return listed
