"""Model files measured beside each other on the same images: everything that a report tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibration.graph.edit import Array
from calibration.graph.memory import release_memory
from calibration.write import write_plan
from export.image_sets import ExportImages
from export.measure.embeddings import measure_embeddings
from export.measure.environment import describe_environment, now, producer
from export.measure.inference import Progress, all_outputs, batches, check_finite, latencies
from export.measure.merging import Merging, compare
from export.measure.model_file import ModelFile, open_model
from export.measure.publish import Measurements, write_variant
from export.measure.reliability import measure_reliability
from export.measure.results import Layers, Results
from export.sources.source import Source
from runtime.model_file.artifact import Variant
from vit.data.datasets import Images
from vit.data.public import public_name

BEFORE_SEARCH = "int8 before the search"
DENSE = "int8 without merging"
ADVICE: Mapping[Variant, str] = {  # for outputs that are not finite
    "float32": "the model itself gives them; look at that image, and at the weights",
    "int8": "keep layers in float (--keep-float), or give other calibration images",
    "float16": "float16 ends at 65,504; leave --fp16 out",
}


class Reporter(Protocol):
    """Shows one long step: what is done, and how many there are of what; 0 where nothing is counted."""

    def __call__(
        self, what: str, total: int = 0, unit: str = "image"
    ) -> AbstractContextManager[Progress]: ...


def silent(what: str, total: int = 0, unit: str = "image") -> AbstractContextManager[Progress]:
    """Show nothing."""
    del what, total, unit
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
        report: shows each long step.
        plan: the file whose plan was written, where nothing was calibrated.
        threads: CPU threads; None takes every core that this process may use.
    """
    found = _measure_all(source, images.evaluation, variants, report, threads)
    with report("comparing layers"):
        written = [  # without dense INT8, which is not a file
            write_variant(source, each, rows, found, folder, threads)
            for each, rows in zip(variants, found.logits, strict=False)
        ]
    return Results(
        producer=producer(),
        made={"date": now()},
        source=source.description,
        preprocess=source.preprocess,
        environment=describe_environment(),
        labels=source.labels,
        passes=source.exported.passes,
        reference=source.reference_name,
        parity=parity,
        calibration=_calibration(images, variants, plan),
        search=_search(variants, found.latency),
        merging=found.merging,
        reliability=found.reliability,
        embeddings=found.embeddings,
        evaluation=_evaluation(images),
        images=images.evaluation,
        targets=images.evaluation.targets,
        variants=tuple(written),
        layers=_layers(source, variants),
    )


def _measure_all(
    source: Source, evaluation: Images, variants: list[ModelFile], report: Reporter, threads: int | None
) -> Measurements:
    """Run all variants on the images, and the same plan without merging where one merges."""
    with report("measuring", len(evaluation)) as progress:
        sessions = [each.opened(threads) for each in (*variants, *_dense(source, variants))]
        outputs = all_outputs(sessions, evaluation, source.preprocess, progress)
        del sessions  # before those of the latencies are opened
        release_memory(source.exported.model)
    for each, found in zip(variants, outputs, strict=False):
        check_finite(each.variant, found, evaluation, ADVICE[each.variant])
    # A model without classes has no logits: nothing is said of labels.
    logits = [each.get("logits", np.zeros((len(evaluation), 0), np.float32)) for each in outputs]
    with report("measuring latency"):
        latency = _latencies(source, variants, evaluation)
    release_memory(source.exported.model)
    embedded: dict[str, Array] = {
        each.variant: found["embedding"]
        for each, found in zip(variants, outputs, strict=False)
        if "embedding" in found
    }
    return Measurements(
        evaluation=evaluation,
        logits=logits,
        latency=latency,
        merging=_merging(source, variants, evaluation, logits, latency),
        embeddings=measure_embeddings(embedded) if embedded else None,
        reliability=measure_reliability(
            {each.variant: rows for each, rows in zip(variants, logits, strict=False)}, *evaluation.truth
        ),
    )


def _latencies(
    source: Source, variants: list[ModelFile], evaluation: Images
) -> Mapping[str, Mapping[str, float]]:
    """Of one image on one thread, in turn; where a search gave layers back, also of the model before it."""
    timed = {str(each.variant): each.opened(1) for each in variants}
    for each in variants:
        if each.search is not None and each.search.returned:
            before = write_plan(source.exported.model, each.search.start)
            timed[BEFORE_SEARCH] = open_model(before, each.target, 1)
        for dense in _dense(source, [each]):
            timed[DENSE] = dense.opened(1)
    return latencies(timed, next(batches(evaluation.subset(range(1)), source.preprocess, size=1)))


def _dense(source: Source, variants: list[ModelFile]) -> list[ModelFile]:
    """Return the same plan without merging, to be measured beside a merged model and not written."""
    found = []
    for each in variants:
        if each.quantized is not None and each.merges:
            plan = replace(each.quantized.plan, merging={})
            model = write_plan(source.exported.model, plan)
            found.append(ModelFile("int8", model, replace(each.quantized, model=model, plan=plan)))
    return found


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


def _calibration(images: ExportImages, variants: list[ModelFile], plan: Path | None) -> dict[str, Any]:
    target = next((each.target for each in variants if each.target is not None), None)
    if target is None:
        return {}
    if plan is not None:
        return {"plan": plan.name, "target": target}
    calibration = images.calibration
    return {"source": public_name(calibration.name), "images": len(calibration), "target": target}


def _evaluation(images: ExportImages) -> dict[str, Any]:
    return {
        "source": public_name(images.evaluation.name),
        "images": len(images.evaluation),
        "labeled": images.evaluation.targets is not None,
        "chosen": images.note,
    }


def _search(variants: list[ModelFile], times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for each in variants:
        if each.search is not None:
            before = times.get(BEFORE_SEARCH, times[each.variant])
            return {**each.search.to_dict(), "latency_ms_before": dict(before)}
    return {}


def _layers(source: Source, variants: list[ModelFile]) -> Layers | None:
    """Count the linear layers and attention products of INT8 by precision."""
    for each in variants:
        if each.quantized is not None:
            plan = each.quantized.plan
            products = {name: product.precision == "int8" for name, product in plan.products.items()}
            linears = {name: linear.precision == "int8" for name, linear in plan.linears.items()}
            return Layers(
                int8_linears=sum(linears.values()),
                float_linears=(*source.float_layers, *(name for name, int8 in linears.items() if not int8)),
                int8_products=sum(products.values()),
                float_products=tuple(name for name, int8 in products.items() if not int8),
            )
    return None
