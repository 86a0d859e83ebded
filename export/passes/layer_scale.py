"""LayerScale: the factor of each feature moves into the linear in front of it."""

from __future__ import annotations

import onnx_ir as ir

from calibration.graph import by_type, constant, graph_of, only_reader, replace, sizes, tidy
from export.passes.linears import gemm_parameters, is_one_per_feature, set_linear


def fold_layer_scale(model: ir.Model) -> int:
    """(x W + b) · g → x (W g) + b g, for a constant g of one factor a feature (arXiv 2103.17239).

    A float product with all tokens less, and nothing that keeps their rows from passing through the
    residual; weights with a scale for each output feature round as before.
    """
    changes = 0
    for node in by_type(model, "Mul"):
        for product, other in (node.inputs, node.inputs[::-1]):
            gemm, factors = _gemm_above(product), constant(other)
            parameters = gemm_parameters(gemm) if gemm is not None else None
            if gemm is None or product is None or factors is None or parameters is None:
                continue
            weight, bias = parameters
            if is_one_per_feature(factors, len(bias)) and factors.ndim <= len(sizes(product) or ()):
                set_linear(gemm, weight * factors.reshape(-1), bias * factors.reshape(-1))
                replace(node.outputs[0], product)
                graph_of(node).remove(node, safe=True)
                changes += 1
                break
    if changes:
        tidy(model)
    return changes


def _gemm_above(value: ir.Value | None) -> ir.Node | None:
    """The Gemm that made a value which nothing else reads, directly or through a Reshape of its rows."""
    if value is None or only_reader(value) is None:
        return None
    node = value.producer()
    if node is None or node.op_type != "Reshape":
        return node
    rows, grouped = sizes(node.inputs[0]), sizes(value)
    same_features = rows is not None and grouped is not None and rows[-1] == grouped[-1] is not None
    return _gemm_above(node.inputs[0]) if same_features else None
