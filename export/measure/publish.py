"""Write the file of one variant, with its measurements as metadata, and describe it for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.graph.edit import Array
from calibration.measure.drift import Drift, measure_drift
from calibration.measure.per_layer import measure_layer_drift
from calibration.write import write_plan
from export.measure.embeddings import EmbeddingDrift
from export.measure.environment import producer
from export.measure.inference import batches
from export.measure.merging import Merging
from export.measure.model_file import ModelFile
from export.measure.reliability import Reliability
from export.measure.results import VariantResult
from export.sources.source import Source
from export.write_artifact import write_model
from runtime.model_file.artifact import FILE_NAMES, Metadata
from vit.data.datasets import Images
from vit.data.public import public_name

LAYER_IMAGES = 16  # enough for the drift of each layer


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measurements of all variants on the same images.

    Attributes:
        evaluation: the images.
        logits: of each variant, float32 first, then of what is compared but not written; each
            `float32 [images, classes]`.
        latency: milliseconds of one image by variant, each with min and median.
        merging: effect of token merging, where int8 merges tokens.
        embeddings: drift of the embeddings by variant; None for a model that gives none.
        reliability: of the scores; None where too few classes are known.
    """

    evaluation: Images
    logits: list[Array]
    latency: Mapping[str, Mapping[str, float]]
    merging: Merging | None
    embeddings: Mapping[str, EmbeddingDrift] | None
    reliability: Reliability | None


def write_variant(
    source: Source,
    variant: ModelFile,
    logits: Array,
    measurements: Measurements,
    folder: Path,
    threads: int | None,
) -> VariantResult:
    """Write the file of a variant, and return what the report says of it.

    Args:
        source: the model that was exported.
        variant: the variant.
        logits: of the variant on the evaluation images, `float32 [images, classes]`.
        measurements: the measurements of all variants.
        folder: where the file goes.
        threads: of the session that measures the layers; None for all cores.
    """
    name = FILE_NAMES[variant.variant]
    compared = variant.variant != "float32" and source.labels
    evaluation, exact = measurements.evaluation, measurements.logits[0]
    drift = measure_drift(exact, logits, *evaluation.truth) if compared else None
    metadata = _metadata(source, variant, _measured(variant, drift, measurements), measurements.reliability)
    size, sha256 = write_model(folder / name, variant.model, metadata)
    kernels = variant.quantized.kernels if variant.quantized is not None else None
    return VariantResult(
        variant=variant.variant,
        file=name,
        bytes=size,
        sha256=sha256,
        logits=logits,
        latency=measurements.latency[variant.variant],
        drift=drift,
        kernels=kernels.counts if kernels else {},
        integer_kernels=kernels.summary() if kernels else "",
        layers=_layers(source, variant, evaluation, threads),
    )


def _measured(each: ModelFile, drift: Drift | None, measurements: Measurements) -> dict[str, Any]:
    """Return the field `measured` of the metadata."""
    evaluation, embedding = measurements.evaluation, (measurements.embeddings or {}).get(each.variant)
    measured: dict[str, Any] = {"images": len(evaluation), "source": public_name(evaluation.name)}
    if drift is not None:
        measured["drift"] = drift.to_dict()
    if embedding is not None:
        measured["embedding_drift"] = embedding.to_dict()
    if measurements.merging is not None and each.merges:
        measured["merging"] = {
            "schedule": dict(measurements.merging.schedule),
            "dense_drift": measurements.merging.dense_drift.to_dict(),
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


def _layers(source: Source, each: ModelFile, evaluation: Images, threads: int | None) -> Mapping[str, float]:
    if each.quantized is None:
        return {}
    model, plan = each.model, each.quantized.plan
    if each.merges:  # rows of merged tokens have no counterpart in float: the layers of dense INT8 are told
        plan = replace(plan, merging={})
        model = write_plan(source.exported.model, plan)
    some = evaluation.subset(range(min(LAYER_IMAGES, len(evaluation))))
    feed = batches(some, source.preprocess)
    return measure_layer_drift(source.exported.model, model, plan, feed, threads=threads)
