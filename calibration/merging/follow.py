"""Readers of merged tokens: shapes with the number of tokens change, what needs all patches is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibration.graph import attribute, constant, graph_of, shape_constant, sizes
from calibration.merging.sites import HEADS_LAST
from calibration.plan import PlanError

# Operators that treat each row alike, whatever its place.
ROW_WISE = frozenset({"Gemm", "LayerNormalization", "Gelu", "Tanh", "Erf", "Sigmoid", "Relu", "Identity"})
ELEMENT_WISE = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass
class Followed:
    """Everything downstream of merged tokens, up to where the class token alone is read."""

    softmaxes: list[ir.Node] = field(default_factory=list)
    values: set[ir.Value] = field(default_factory=set)


def follow(
    merged: ir.Value, uses: Sequence[tuple[ir.Node, int]], *, before: int, after: int, kept: int
) -> Followed:
    """Give everything that reads `merged` the new number of tokens.

    Args:
        merged: the tokens after a merge, `float32 [after · batch, width]`.
        uses: who reads them, as (node, input index).
        before: tokens before the merge.
        after: tokens after it.
        kept: how many tokens, at the front, never merge.

    Raises:
        PlanError: for an operator that needs every patch in its place, such as a mean over patches.
    """
    found = Followed(values={merged})
    waiting, done = [(node, index, False) for node, index in uses], set()
    partners: list[tuple[ir.Node, ir.Value]] = []
    while waiting:
        step = node, index, across = waiting.pop()
        if step in done:
            continue
        done.add(step)
        if _ends(node, index, across, kept):
            continue
        across = _carry_on(node, index, across, before, after)
        if node.op_type in ELEMENT_WISE:
            partners += _other_input(node, index)
        if node.op_type == "Softmax" and across:
            found.softmaxes.append(node)
        output = node.outputs[0]
        if output.is_graph_output():
            raise _needs_all(node)
        found.values.add(output)
        if before in (sizes(output) or ()):
            output.shape = None  # inferred again once all merges are written
        waiting += [(use.node, use.idx, across) for use in output.uses()]
    for node, value in partners:
        if value not in found.values:
            raise _needs_all(node)
    return found


def _ends(node: ir.Node, index: int, across: bool, kept: int) -> bool:
    """Return whether the merged tokens end at this reader: its output has no axis of tokens."""
    if node.op_type == "Gather" and not across:
        return _selects_kept(node, kept)
    # The mix sums over the tokens of its second input.
    return node.op_type == "MatMul" and index == int(not across)


def _carry_on(node: ir.Node, index: int, across: bool, before: int, after: int) -> bool:
    """Adapt a reader of merged tokens; return whether its output has them in columns, as scores have."""
    if node.op_type == "Reshape" and not across:
        _reshape(node, before, after)
        return False
    if node.op_type == "Transpose" and not across:
        return tuple(attribute(node, "perm", ())) == HEADS_LAST
    if node.op_type in ("MatMul", "Softmax"):
        return across
    if across or index not in ((0, 1) if node.op_type in ELEMENT_WISE else (0,)):
        raise _needs_all(node)
    if node.op_type not in ROW_WISE | ELEMENT_WISE:
        raise _needs_all(node)
    return False


def _selects_kept(node: ir.Node, kept: int) -> bool:
    """Return whether a Gather picks tokens that never merge, such as the class token."""
    index = constant(node.inputs[1])
    return (
        attribute(node, "axis", 0) == 0 and index is not None and bool(((index >= 0) & (index < kept)).all())
    )


def _reshape(node: ir.Node, before: int, after: int) -> None:
    target = constant(node.inputs[1])
    if target is None or not len(target):
        raise _needs_all(node)
    if len(target) == 2 and target[0] == -1:
        return  # rows of a matrix, however many
    if len(target) != 3 or target[0] != before or target[1] != -1:
        raise _needs_all(node)
    shape = [after, -1, int(target[2])]
    node.replace_input_with(1, shape_constant(graph_of(node), shape))


def _other_input(node: ir.Node, index: int) -> list[tuple[ir.Node, ir.Value]]:
    """Return the computed partner of an element-wise operator; a constant must be the same for all tokens."""
    other = node.inputs[1 - index]
    array = constant(other)
    if other is None or array is None:
        return [] if other is None else [(node, other)]
    if array.size not in (1, np.shape(array)[-1] if np.ndim(array) else 1):
        raise _needs_all(node)
    return []


def _needs_all(node: ir.Node) -> PlanError:
    return PlanError(
        f"merging: {node.name} ({node.op_type}) needs every patch in its place, as a mean over the "
        "patches or a bias per position does; leave merging out for this model"
    )
