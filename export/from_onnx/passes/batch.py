"""A graph for one fixed number of images → the same graph for any number of them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from export.from_onnx.passes.batch_layout import LAYOUT
from export.from_onnx.passes.batch_rules import ARITHMETIC, Rule
from export.from_onnx.passes.places import SYMBOL, Place, Walk, shape_of

RULES: dict[str, Rule] = {name: rule for names, rule, _ in (*ARITHMETIC, *LAYOUT) for name in names.split()}


def free_batch(model: ir.Model) -> int:
    """Reshape targets, class tokens and the like no longer name the number of images.

    The batch is followed from the input through every operator, by the rules of `batch_rules` and
    `batch_layout`; each says where the batch lies in an operator's output.

    Raises:
        GraphError: naming the node where the batch could not be followed.
    """
    walk = Walk(model)
    for node in list(model.graph):
        if not any(value in walk.places for value in node.inputs if value is not None):
            continue
        rule = RULES.get(node.op_type)
        if rule is None:
            raise walk.lost(node)
        place = rule(walk, node)
        for output in node.outputs:
            walk.places[output] = place
    for value, place in walk.places.items():
        value.shape = _freed(value, place, walk.size)
    RemoveUnusedNodesPass()(model)  # what was replaced, and still reads constants for the fixed batch
    return walk.changes


def _freed(value: ir.Value, place: Place, size: int) -> ir.Shape:
    shape: list[int | str | None] = list(shape_of(value))
    pure = place.before == 1 and shape[place.axis] == size
    shape[place.axis] = SYMBOL if pure else None
    return ir.Shape(shape)
