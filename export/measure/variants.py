"""Model files measured beside each other on the same images: everything that a report tells of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from calibration.drift import Drift, measure_drift
from calibration.layers import layer_drift
from calibration.plan import Target
from calibration.quantize import Quantized
from calibration.search import Search
from calibration.serialize import session_of
from calibration.write import write_plan
from export.files import cleaned, write_model
from export.images import ExportImages
from export.measure.environment import describe_environment, producer
from export.measure.inference import Progress, all_logits, batches, latencies
from export.measure.results import Results, VariantResult
from export.source import Source
from runtime.artifact import FILE_NAMES, Metadata, Variant
from vit.data.images import Images

LAYER_IMAGES = 16  # enough for the drift of each layer
BEFORE_SEARCH = "int8 before the search"

Reporter = Callable[[str, int], AbstractContextManager[Progress]]  # (what, how many images) → a progress bar


def silent(what: str, total: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class ModelFile:
    """A model before it is measured and written."""

    variant: Variant
    model: ir.Model
    session: ort.InferenceSession
    quantized: Quantized | None = None
    search: Search | None = None

    @classmethod
    def opened(
        cls,
        variant: Variant,
        model: ir.Model,
        threads: int | None,
        quantized: Quantized | None = None,
        search: Search | None = None,
    ) -> ModelFile:
        target = quantized.plan.target if quantized is not None else None
        return cls(variant, model, _session(model, target, threads), quantized, search)

    @property
    def target(self) -> Target | None:
        """The kind of CPU that int8 weights are made for."""
        return self.quantized.plan.target if self.quantized is not None else None


def measure(
    source: Source,
    parity: float,
    images: ExportImages,
    variants: list[ModelFile],
    folder: Path,
    report: Reporter = silent,
    *,
    plan: Path | None = None,
    threads: int | None = None,
) -> Results:
    """Measure what each variant does on the evaluation images, and write its file.

    Args:
        variants: float32 first, which the others are compared with.
        folder: where the model files go.
        plan: the file whose plan was written, where nothing was calibrated.
    """
    evaluation = images.evaluation
    with report("measuring", len(evaluation)) as progress:
        logits = all_logits([each.session for each in variants], evaluation, source.preprocess, progress)
    times = _latencies(source, variants, evaluation)
    found = []
    for each, rows in zip(variants, logits, strict=True):
        drift = None if each.variant == "float32" else measure_drift(logits[0], rows, evaluation.targets)
        name = FILE_NAMES[each.variant]
        size, sha256 = write_model(folder / name, each.model, _metadata(source, each, drift, evaluation))
        kernels = each.quantized.kernels if each.quantized is not None else None
        found.append(
            VariantResult(
                variant=each.variant,
                file=name,
                bytes=size,
                sha256=sha256,
                logits=rows,
                latency=times[each.variant],
                drift=drift,
                kernels=kernels.counts if kernels else {},
                integer_kernels=kernels.summary() if kernels else "",
                layers=_layers(source, each, evaluation, threads),
            )
        )
    return Results(
        producer=producer(),
        source=source.description,
        environment=describe_environment(),
        labels=source.labels,
        passes=source.exported.passes,
        reference=source.reference_name,
        parity=parity,
        calibration=_calibration(images, variants, plan),
        search=_search(variants, times),
        evaluation={
            "source": evaluation.name,
            "images": len(evaluation),
            "labelled": evaluation.targets is not None,
            "chosen": images.note,
        },
        images=evaluation,
        targets=evaluation.targets,
        variants=tuple(found),
        float_layers=source.float_layers + _kept_float(variants),
    )


def _session(model: ir.Model, target: Target | None, threads: int | None) -> ort.InferenceSession:
    return session_of(cleaned(model), threads=threads, target=target or "any")


def _latencies(
    source: Source, variants: list[ModelFile], evaluation: Images
) -> Mapping[str, Mapping[str, float]]:
    """Of one image on one thread, in turn; where a search gave layers back, also of the model before it."""
    timed: dict[str, ort.InferenceSession] = {
        each.variant: _session(each.model, each.target, 1) for each in variants
    }
    for each in variants:
        if each.search is not None and each.search.returned:
            before = write_plan(source.exported.model, each.search.start)
            timed[BEFORE_SEARCH] = _session(before, each.target, 1)
    return latencies(timed, next(batches(evaluation.subset(range(1)), source.preprocess, size=1)))


def _layers(source: Source, each: ModelFile, evaluation: Images, threads: int | None) -> Mapping[str, float]:
    if each.quantized is None:
        return {}
    some = evaluation.subset(range(min(LAYER_IMAGES, len(evaluation))))
    feed = batches(some, source.preprocess)
    return layer_drift(source.exported.model, each.model, each.quantized.plan, feed, threads=threads)


def _calibration(images: ExportImages, variants: list[ModelFile], plan: Path | None) -> dict[str, Any]:
    target = next((each.target for each in variants if each.target is not None), None)
    if target is None:
        return {}
    if plan is not None:
        return {"plan": plan.name, "target": target}
    calibration = images.calibration
    return {"source": calibration.name, "images": len(calibration), "target": target}


def _search(variants: list[ModelFile], times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for each in variants:
        if each.search is not None:
            before = times.get(BEFORE_SEARCH, times[each.variant])
            return {**each.search.to_dict(), "latency_ms_before": dict(before)}
    return {}


def _metadata(source: Source, each: ModelFile, drift: Drift | None, evaluation: Images) -> Metadata:
    measured: dict[str, Any] = {"images": len(evaluation), "source": evaluation.name}
    if drift is not None:
        measured["drift"] = drift.to_dict()
    return Metadata(
        variant=each.variant,
        preprocess=source.preprocess,
        labels=source.labels,
        target=each.target or "any",
        source=source.description,
        measured=measured,
        producer=producer(),
    )


def _kept_float(variants: list[ModelFile]) -> tuple[str, ...]:
    """The linears and products that the plan leaves in float32."""
    plans = [each.quantized.plan for each in variants if each.quantized is not None]
    linears = [name for plan in plans for name, e in plan.linears.items() if e.precision == "float32"]
    return (*linears, *(n for plan in plans for n, e in plan.products.items() if e.precision == "float32"))
