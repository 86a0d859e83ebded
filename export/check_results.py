"""Checks before files are published: the float32 file equals its source, no variant drifts beyond a limit."""

from __future__ import annotations

import numpy as np

from calibration.plan import QuantizationPlan
from export.measure.inference import batches
from export.report.conclusion import Conclusion
from export.report.merging_effect import MergingEffect
from export.report.quantized_layers import QuantizedLayers
from export.report.section import Results
from export.sources.scores import expect_logits
from export.sources.source import Source
from runtime.errors import FailureError
from runtime.model_file.artifact import Variant
from runtime.onnx_runtime import onnxruntime as ort
from vit.data.datasets import Images

PARITY = 1e-4  # of the logits' scale: float32 rounding in another order, and no more
PARITY_IMAGES = 8


class ExportError(FailureError):
    """An export whose result must not be used; nothing was written."""


class DriftError(ExportError):
    """A variant is further from float than allowed: `plan` is that of an INT8 variant, to train with."""

    def __init__(self, message: str, plan: QuantizationPlan | None = None) -> None:
        super().__init__(message)
        self.plan = plan


def check_parity(source: Source, session: ort.InferenceSession, images: Images) -> float:
    """Compare the float32 file, open as `session`, with its source on the first few images.

    Returns:
        the largest difference of a logit over the largest logit.

    Raises:
        ExportError: if the file does not run, or differs by more than `PARITY`.
        OnnxModelError: if the source gives probabilities or other scores in the place of logits.
    """
    report = f"please report this with: {dict(source.description)}"
    some = images.subset(range(min(PARITY_IMAGES, len(images))))
    batch = np.concatenate(list(batches(some, source.preprocess)))
    expected = source.reference(batch)
    if source.labels:
        expect_logits(expected)
    try:
        found = session.run(None, {session.get_inputs()[0].name: batch})[0]
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise ExportError(
            f"ONNX Runtime cannot run the exported float model ({' '.join(str(error).split())}); {report}"
        ) from error
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= PARITY:
        raise ExportError(
            f"the exported float model differs from {source.reference_name} by {difference:.1e} of the "
            f"logits' scale, expected at most {PARITY:.0e}; {report}"
        )
    return difference


def check_limits(results: Results, plan: QuantizationPlan | None = None) -> None:
    """Refuse results that miss a limit of the options; `plan` is that of the INT8 variant.

    Raises:
        DriftError: naming the variant, the limits that it misses, and what to do.
    """
    for each in results.variants[1:]:
        limits = results.get(Conclusion).limits
        missed = [limit for limit in limits if limit.variant == each.variant and limit.status == "missed"]
        failures = [limit.text for limit in missed]
        far = each.variant == "int8" and any(limit.limit != "--min-cosine" for limit in missed)
        if far and any(isinstance(each, MergingEffect) for each in results.sections):
            failures.append("it merges tokens: merge fewer of them (--merge-tokens R) or none")
        elif far:
            worst = [f"{name} ({db:.1f} dB)" for name, db in results.get(QuantizedLayers).worst()]
            failures.append(f"furthest from float32: {', '.join(worst)}")
        if failures:
            raise drift_error(each.variant, "; ".join(failures), plan if each.variant == "int8" else None)


def drift_error(variant: Variant, why: str, plan: QuantizationPlan | None = None) -> DriftError:
    """Return the error of a variant that drifts beyond a limit, with advice."""
    int8 = "give more calibration images, keep layers in float32 (--keep-float) or set a wider limit"
    advice = int8 if variant == "int8" else "leave --fp16 out"
    return DriftError(f"{variant} drifts beyond the limit: {why}. No model file was written; {advice}", plan)
