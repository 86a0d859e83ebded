"""Checks before files are published: the float32 file equals its source, no variant drifts beyond a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.measure.clipping import clipped_activations
from calibration.measure.statistics import sqnr_interval
from calibration.search import Budget
from export.image_sets import ExportImages
from export.measure.evidence import Doubt, Evidence, doubts
from export.measure.inference import batches
from export.measure.model_file import ModelFile
from export.measure.publish import LAYER_IMAGES
from export.measure.results import Clipping, Results
from export.measure.verdict import Verdict, judge
from export.options import Options
from export.sources.scores import expect_logits
from export.sources.source import Source
from runtime.errors import FailureError
from runtime.model_file.artifact import Variant
from runtime.onnx_runtime import onnxruntime as ort
from vit.data.datasets import Images

PARITY = 1e-4  # of the logits' scale: float32 rounding in another order, and no more
PARITY_IMAGES = 8
WORST_LAYERS = 5  # named in a message, those furthest from float32
JUDGED_IMAGES = 32  # of the calibration images, whether they are alike


class ExportError(FailureError):
    """An export whose result must not be used; nothing was written."""


class DriftError(ExportError):
    """INT8 is further from float than allowed."""


def check_parity(source: Source, session: ort.InferenceSession, images: Images) -> float:
    """Compare the float32 file with its source on a few images.

    Args:
        source: the model that was exported.
        session: the float32 file, running.
        images: the first few of them are taken.

    Returns:
        the largest difference of a logit over the largest logit.

    Raises:
        ExportError: if the file does not run, or differs by more than `PARITY`.
        ForeignError: if the source gives probabilities or other scores in the place of logits.
    """
    some = images.subset(range(min(PARITY_IMAGES, len(images))))
    batch = np.concatenate(list(batches(some, source.preprocess)))
    expected = source.reference(batch)
    if source.labels:
        expect_logits(expected)
    try:
        found = session.run(None, {session.get_inputs()[0].name: batch})[0]
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise ExportError(
            f"ONNX Runtime cannot run the exported float model ({' '.join(str(error).split())}); please "
            f"report this with: {dict(source.description)}"
        ) from error
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= PARITY:
        raise ExportError(
            f"the exported float model differs from {source.reference_name} by {difference:.1e} of the "
            f"logits' scale, expected at most {PARITY:.0e}; please report this with: "
            f"{dict(source.description)}"
        )
    return difference


def check_limits(results: Results, options: Options) -> None:
    """Refuse results that miss a limit of the options.

    Raises:
        DriftError: naming the variant, the limits that it misses, and what to do.
    """
    missed = [each for each in _judge(results, options).limits if each.status == "missed"]
    for each in results.variants[1:]:
        failures = [limit.text for limit in missed if limit.variant == each.variant]
        far = any(limit.variant == each.variant and limit.limit != "--min-cosine" for limit in missed)
        if far and each.variant == "int8" and results.merging is not None:
            failures.append("it merges tokens: merge fewer of them (--merge-tokens R) or none")
        elif far and each.variant == "int8":
            layers = sorted(each.layers.items(), key=lambda item: item[1])[:WORST_LAYERS]
            worst = ", ".join(f"{name} ({db:.1f} dB)" for name, db in layers)
            failures.append(f"furthest from float32: {worst}")
        if failures:
            raise drift_error(each.variant, "; ".join(failures))


def _judge(results: Results, options: Options, found: tuple[Doubt, ...] = ()) -> Verdict:
    exact = results.variants[0].logits
    budgets: dict[str, Budget] = dict.fromkeys((each.variant for each in results.variants), options.budget)
    if results.merging is not None and options.merge_budget is not None:  # it has limits of its own
        budgets["int8"] = options.merge_budget
    return judge(
        budgets,
        {each.variant: each.drift for each in results.variants if each.drift is not None},
        sqnr={
            each.variant: sqnr_interval(exact, each.logits)
            for each in results.variants[1:]
            if budgets[each.variant].min_sqnr is not None and each.drift is not None
        },
        min_cosine=options.min_cosine,
        embeddings=results.embeddings,
        doubts=found,
    )


def add_judgment(
    source: Source, images: ExportImages, results: Results, variants: list[ModelFile], options: Options
) -> Results:
    """Add the command, the verdict, the doubts about the evidence, and the clipped activations."""
    clipping = _clipping(source, images, variants, options)
    found = _doubts(source, images, results, clipping, options)
    verdict = _judge(results, options, found)
    warnings = tuple(each.sentence for each in found)
    made = {**results.made, **({"command": options.command} if options.command else {})}
    return replace(results, made=made, verdict=verdict, warnings=warnings, clipping=clipping)


def _clipping(
    source: Source, images: ExportImages, variants: list[ModelFile], options: Options
) -> Clipping | None:
    quantized = next((each.quantized for each in variants if each.quantized is not None), None)
    if quantized is None or quantized.plan.merging:
        return None
    some = images.evaluation.subset(range(min(LAYER_IMAGES, len(images.evaluation))))
    feed = batches(some, source.preprocess)
    layers = clipped_activations(source.exported.model, quantized.plan, feed, threads=options.threads)
    return Clipping(len(some), layers)


def _doubts(
    source: Source, images: ExportImages, results: Results, clipping: Clipping | None, options: Options
) -> tuple[Doubt, ...]:
    """Return what the chosen images cannot show, or should not be believed for."""
    calibrated = options.quantize and options.plan is None
    shown = images.calibration.subset(range(min(JUDGED_IMAGES, len(images.calibration))))
    evidence = Evidence(
        calibration=images.calibration if calibrated else None,
        evaluation=images.evaluation,
        search=images.search,
        targets=results.targets,
        labels=source.labels,
        logits=results.variants[0].logits,
        trained_on=source.trained_on,
        clipped=None if clipping is None else clipping.layers,
    )
    pixels = (image for batch in batches(shown, source.preprocess) for image in batch) if calibrated else ()
    return doubts(evidence, pixels)


def drift_error(variant: Variant, why: str) -> DriftError:
    """Return the error of a variant that drifts beyond a limit, with advice."""
    advice = "give more calibration images, keep layers in float32 (--keep-float) or set a wider limit"
    if variant != "int8":
        advice = "leave --fp16 out"
    return DriftError(f"{variant} drifts beyond the limit: {why}. Nothing was written; {advice}")
