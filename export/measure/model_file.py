"""A model of the export before it is measured and written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from calibration.graph.memory import open_graph_session
from calibration.quantize_model import QuantizedModel
from calibration.search import PlanSearch
from export.write_artifact import cleaned
from runtime.model_file.artifact import Variant
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort


@dataclass(frozen=True)
class ModelFile:
    """A model before it is measured and written."""

    variant: Variant
    model: ir.Model
    quantized: QuantizedModel | None = None
    search: PlanSearch | None = None

    def opened(self, threads: int | None) -> ort.InferenceSession:
        """Open it on the CPU."""
        return open_model(self.model, self.target, threads)

    @property
    def merges(self) -> bool:
        """True if the variant merges tokens."""
        return self.quantized is not None and bool(self.quantized.plan.merging)

    @property
    def target(self) -> Target | None:
        """The form of the INT8 weights; None for a float model."""
        return self.quantized.plan.target if self.quantized is not None else None


def open_model(model: ir.Model, target: Target | None, threads: int | None) -> ort.InferenceSession:
    """Open a model of the export on the CPU."""
    return open_graph_session(cleaned(model), threads=threads, target=target or "any-cpu")
