"""The canonical float32 graph that every source is brought into, and its names. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

# Gelu (opset 20) and LayerNormalization (17) are single nodes; Q/DQ keeps int32 biases.
OPSET = 21
INPUT, OUTPUT, EMBEDDING = "pixels", "logits", "embedding"


@dataclass(frozen=True)
class FloatModel:
    """A float32 graph in the form that quantizes well, and how many places each pass changed to get there."""

    model: ir.Model
    passes: Mapping[str, int]
