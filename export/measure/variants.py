"""Model files measured beside each other on the same images: everything that a report tells of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.drift import Drift, measure_drift
from calibration.graph import Array
from calibration.layers import layer_drift
from calibration.write import write_plan
from export.files import write_model
from export.images import ExportImages, public_name
from export.measure.embeddings import EmbeddingDrift, measure_embeddings
from export.measure.environment import describe_environment, producer
from export.measure.inference import Progress, all_outputs, batches, latencies
from export.measure.merging import Merging, compare
from export.measure.model_file import ModelFile, open_model
from export.measure.reliability import Reliability, measure_reliability
from export.measure.results import Results, VariantResult
from export.source import Source
from runtime.artifact import FILE_NAMES, Metadata
from vit.data.images import Images

LAYER_IMAGES = 16  # enough for the drift of each layer
BEFORE_SEARCH = "int8 before the search"
DENSE = "int8 without merging"

Reporter = Callable[[str, int], AbstractContextManager[Progress]]  # (what, how many images) → a progress bar


def silent(_what: str, _total: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _: None)


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
        source: the model that is exported.
        parity: largest difference of a logit from the reference, over the largest logit.
        images: images for evaluation and search.
        variants: float32 first, which the others are compared with.
        folder: where the model files go.
        report: makes the progress bar of a step from its name and number of images.
        plan: the file whose plan was written, where nothing was calibrated.
        threads: CPU threads; None takes every core that this process may use.
    """
    evaluation = images.evaluation
    with report("measuring", len(evaluation)) as progress:
        dense = _dense(source, variants, threads)
        sessions = [each.session for each in (*variants, *dense)]
        outputs = all_outputs(sessions, evaluation, source.preprocess, progress)
    # A model without classes has no logits: nothing is said of labels.
    logits = [each.get("logits", np.zeros((len(evaluation), 0), np.float32)) for each in outputs]
    times = _latencies(source, variants, evaluation)
    merging = _merging(source, variants, evaluation, logits, times)
    embedded: dict[str, Array] = {
        each.variant: found["embedding"]
        for each, found in zip(variants, outputs, strict=False)
        if "embedding" in found
    }
    embeddings = measure_embeddings(embedded) if embedded else None
    reliability = measure_reliability(
        {each.variant: rows for each, rows in zip(variants, logits, strict=False)}, evaluation.targets
    )
    found = []
    for each, rows in zip(variants, logits, strict=False):  # dense INT8 is not a file
        compared = each.variant != "float32" and source.labels
        drift = measure_drift(logits[0], rows, evaluation.targets) if compared else None
        measured = _measured(each, drift, evaluation, merging, (embeddings or {}).get(each.variant))
        name = FILE_NAMES[each.variant]
        metadata = _metadata(source, each, measured, reliability)
        size, sha256 = write_model(folder / name, each.model, metadata)
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
        merging=merging,
        reliability=reliability,
        embeddings=embeddings,
        evaluation={
            "source": public_name(evaluation.name),
            "images": len(evaluation),
            "labeled": evaluation.targets is not None,
            "chosen": images.note,
        },
        images=evaluation,
        targets=evaluation.targets,
        variants=tuple(found),
        float_layers=source.float_layers + _kept_float(variants),
    )


def _latencies(
    source: Source, variants: list[ModelFile], evaluation: Images
) -> Mapping[str, Mapping[str, float]]:
    """Of one image on one thread, in turn; where a search gave layers back, also of the model before it."""
    timed = {str(each.variant): open_model(each.model, each.target, 1) for each in variants}
    for each in variants:
        if each.search is not None and each.search.returned:
            before = write_plan(source.exported.model, each.search.start)
            timed[BEFORE_SEARCH] = open_model(before, each.target, 1)
        for dense in _dense(source, [each], 1):
            timed[DENSE] = dense.session
    return latencies(timed, next(batches(evaluation.subset(range(1)), source.preprocess, size=1)))


def _dense(source: Source, variants: list[ModelFile], threads: int | None) -> list[ModelFile]:
    """Return the same plan without merging, to be measured beside a merged model and not written."""
    plans = [replace(each.quantized.plan, merging={}) for each in variants if each.quantized and each.merges]
    return [
        ModelFile("int8", model, open_model(model, plan.target, threads))
        for plan in plans
        for model in (write_plan(source.exported.model, plan),)
    ]


def _merging(
    source: Source,
    variants: list[ModelFile],
    evaluation: Images,
    logits: list[Array],
    times: Mapping[str, Mapping[str, float]],
) -> Merging | None:
    for each, rows in zip(variants, logits, strict=False):
        if each.quantized is not None and each.merges:
            three = (logits[0], logits[-1], rows)  # dense INT8 is the last one
            return compare(source, evaluation, each.quantized, three, (times[DENSE], times[each.variant]))
    return None


def _layers(source: Source, each: ModelFile, evaluation: Images, threads: int | None) -> Mapping[str, float]:
    if each.quantized is None:
        return {}
    model, plan = each.model, each.quantized.plan
    if each.merges:  # rows of merged tokens have no counterpart in float: the layers of dense INT8 are told
        plan = replace(plan, merging={})
        model = write_plan(source.exported.model, plan)
    some = evaluation.subset(range(min(LAYER_IMAGES, len(evaluation))))
    feed = batches(some, source.preprocess)
    return layer_drift(source.exported.model, model, plan, feed, threads=threads)


def _calibration(images: ExportImages, variants: list[ModelFile], plan: Path | None) -> dict[str, Any]:
    target = next((each.target for each in variants if each.target is not None), None)
    if target is None:
        return {}
    if plan is not None:
        return {"plan": plan.name, "target": target}
    calibration = images.calibration
    return {"source": public_name(calibration.name), "images": len(calibration), "target": target}


def _search(variants: list[ModelFile], times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for each in variants:
        if each.search is not None:
            before = times.get(BEFORE_SEARCH, times[each.variant])
            return {**each.search.to_dict(), "latency_ms_before": dict(before)}
    return {}


def _measured(
    each: ModelFile,
    drift: Drift | None,
    evaluation: Images,
    merging: Merging | None,
    embedding: EmbeddingDrift | None,
) -> dict[str, Any]:
    measured: dict[str, Any] = {"images": len(evaluation), "source": public_name(evaluation.name)}
    if drift is not None:
        measured["drift"] = drift.to_dict()
    if embedding is not None:
        measured["embedding_drift"] = embedding.to_dict()
    if merging is not None and each.merges:
        measured["merging"] = {
            "schedule": dict(merging.schedule),
            "dense_drift": merging.dense_drift.to_dict(),
        }
    return measured


def _metadata(
    source: Source, each: ModelFile, measured: dict[str, Any], reliability: Reliability | None
) -> Metadata:
    return Metadata(
        variant=each.variant,
        preprocess=source.preprocess,
        labels=source.labels,
        embedding=source.embedding,
        temperature=1.0 if reliability is None else reliability.temperature,
        target=each.target or "any-cpu",
        source=source.description,
        measured=measured,
        producer=producer(),
    )


def _kept_float(variants: list[ModelFile]) -> tuple[str, ...]:
    """The linears and products that the plan leaves in float32."""
    plans = [each.quantized.plan for each in variants if each.quantized is not None]
    linears = [name for plan in plans for name, e in plan.linears.items() if e.precision != "int8"]
    return (*linears, *(n for plan in plans for n, e in plan.products.items() if e.precision == "float32"))
