"""The exact rewrites from what an exporter wrote to the form that quantizes well, each a small pass.

A pass is a function `model -> number of places changed`; the logits before and after are the same
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from calibration.graph.edit import tidy
from export.graph.canonical.class_token import select_class_token
from export.graph.canonical.layout import keep_tokens_as_rows, make_shapes_static, untangle_transposes
from export.graph.canonical.linears import (
    fold_attention_scale,
    fold_layer_scale,
    linears_to_gemm,
    name_parameters,
    name_products,
)
from export.graph.canonical.pixels import fold_normalization, patches_as_gemm
from export.graph.canonical.token_major import tokens_before_batch

Pass = Callable[[ir.Model], int]

PASSES: tuple[Pass, ...] = (
    name_products,
    make_shapes_static,
    untangle_transposes,
    fold_normalization,
    patches_as_gemm,
    select_class_token,
    linears_to_gemm,
    fold_layer_scale,
    keep_tokens_as_rows,
    fold_attention_scale,
    tokens_before_batch,
    name_parameters,
)


def canonicalize(model: ir.Model) -> Mapping[str, int]:
    """Run all passes in their order, in place; how many places each one changed, by its name."""
    tidy(model)
    changes = {each.__name__: each(model) for each in PASSES}
    CommonSubexpressionEliminationPass()(model)
    tidy(model)
    return changes
