"""Attention: the scale 1 / √d moves into the query's weights."""

from __future__ import annotations

import onnx_ir as ir

from calibration.graph import by_type, graph_of, only_reader, replace, scalar, tidy
from export.passes.linears import gemm_parameters, set_linear


def fold_attention_scale(model: ir.Model) -> int:
    """softmax(c · (a q)(b k)ᵀ) → softmax(q' kᵀ) with q' = a b c q, folded into the query's Gemm.

    Exporters write the scale in front of the product, behind it, or half of it on each side.
    """
    changes = 0
    for softmax in by_type(model, "Softmax"):
        behind, scores = _strip(softmax.inputs[0])
        product = scores.producer() if scores is not None else None
        if product is None or product.op_type != "MatMul" or only_reader(product.outputs[0]) is None:
            continue
        before_q, query = _strip(product.inputs[0])
        before_k, _ = _strip(product.inputs[1])
        scales = behind + before_q + before_k
        # What else reads the query must not see it scaled.
        gemm = query.producer() if query is not None and only_reader(query) is not None else None
        if not scales or gemm is None or gemm_parameters(gemm) is None:
            continue
        factor = 1.0
        for node in scales:
            factor *= _factor(node)  # type: ignore[operator]  # _strip took no other
            replace(node.outputs[0], _source(node))
            graph_of(node).remove(node, safe=True)
        parameters = gemm_parameters(gemm)
        assert parameters is not None  # looked at above
        set_linear(gemm, parameters[0] * factor, parameters[1] * factor)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _strip(value: ir.Value | None) -> tuple[list[ir.Node], ir.Value | None]:
    """Walk up through scalings and changes of layout: the scalings, and the first value that is neither."""
    found: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and only_reader(value) is not None:
        if _factor(node) is not None:
            found.append(node)
            value = _source(node)
        elif node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
        else:
            break
    return found, value


def _factor(node: ir.Node) -> float | None:
    """The scalar that a Mul or Div applies, or None for any other node."""
    if node.op_type == "Div":
        divisor = scalar(node.inputs[1])
        return 1.0 / divisor if divisor else None
    if node.op_type != "Mul":
        return None
    found = [number for value in node.inputs if (number := scalar(value)) is not None]
    return found[0] if len(found) == 1 else None


def _source(node: ir.Node) -> ir.Value:
    """The input of a scaling that is not the scalar."""
    (source,) = [value for value in node.inputs if value is not None and scalar(value) is None]
    return source
