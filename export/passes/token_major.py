"""Tokens before images: rows in the order in which attention reads its heads without moving them."""

from __future__ import annotations

import onnx_ir as ir

from calibration.graph import tidy
from export.passes.token_rules import RULES, Step
from export.passes.token_shapes import by_image, concerned, rank, swaps


def tokens_before_batch(model: ir.Model) -> int:
    """Order the rows token by token, not image by image: [T, N, width] in the place of [N, T, width].

    Linears do not care for the order of rows. Attention does: one head's rows are then `[T, N · H, d]`
    without any copy, a stride that ONNX Runtime's MatMul reads directly, so that the transposes of query, key
    and value are no work (its transpose fusion knows this order only). All of the graph changes, or nothing.
    """
    steps: list[Step] = []
    heads = 0
    for node in model.graph:
        if not concerned(node):
            continue
        rule = RULES.get(node.op_type)
        step = rule(node) if rule is not None else None
        if step is None:
            return 0
        heads += node.op_type == "Transpose" and (rank(node.inputs[0]) == 4 or swaps(node))
        steps.append(step)
    given = [value for value in model.graph.inputs if value.dtype != ir.DataType.UINT8]
    if not heads or any(by_image(value) for value in (*given, *model.graph.outputs)):
        return 0
    for step in steps:
        step()
    tidy(model)
    return len(steps)
