"""From a checkpoint or a foreign ONNX to measured model files: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from calibration.clipping import clipped_activations
from calibration.graph import Array
from calibration.merging.search import middle_merging
from calibration.plan import PlanError, QuantizationPlan
from calibration.quantize import Quantized, apply_plan, quantize
from calibration.search import Budget, BudgetError, Search, search_plan
from export.embedding import with_embedding
from export.files import staged
from export.float16 import to_float16
from export.images import ExportImages, choose_images, labeled_as
from export.measure.evidence import Evidence, doubts
from export.measure.inference import Progress, batches
from export.measure.model_file import ModelFile
from export.measure.results import Results, VariantResult
from export.measure.variants import LAYER_IMAGES, Reporter, measure, silent
from export.source import Source
from runtime.artifact import Variant
from runtime.errors import FailureError
from runtime.targets import Target
from vit.data.images import DataError, Images

PARITY = 1e-4  # of the logits' scale: float32 rounding in another order, and no more
PARITY_IMAGES = 8
JUDGED_IMAGES = 32  # of the calibration images, whether they are alike
MERGE_FLOOR = 20.0  # dB; a ViT-B/16 on ImageNet photos: 16 tokens per block 22.9 dB, 27 16.0 dB


class ExportError(FailureError):
    """An export whose result must not be used; nothing was written."""


class DriftError(ExportError):
    """INT8 is further from float than allowed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `python -m export`. Drift limits are in percentage points and percent."""

    calibration: str | Path | None = None
    evaluation: str | Path | None = None
    samples: int = 128
    evaluation_samples: int | None = None
    quantize: bool = True
    half: bool = False
    target: Target = "any-cpu"
    keep_float: tuple[str, ...] = ()
    plan: Path | None = None  # write this plan, and calibrate nothing
    max_drift: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None  # dB
    embedding: bool = False  # give out what the head reads, beside the logits
    min_cosine: float | None = None  # of the embeddings to float's, the mean
    merge_tokens: int | Literal["auto"] | None = None  # per block; "auto": as many as the limits allow
    threads: int | None = None

    @property
    def budget(self) -> Budget:
        return Budget(max_drift=self.max_drift, min_agreement=self.min_agreement, min_sqnr=self.min_sqnr)

    @property
    def merge_budget(self) -> Budget | None:
        """Limits for a search of a merging schedule; None where nothing is searched.

        Few images cannot show half a point of top-1, so the noise of the logits is always limited.
        """
        if self.merge_tokens != "auto":
            return None
        return replace(self.budget, min_sqnr=MERGE_FLOOR if self.min_sqnr is None else self.min_sqnr)

    @property
    def searches(self) -> bool:
        """True if a plan within the limits is searched for; a given plan is only checked against them."""
        return self.quantize and self.plan is None and (self.merge_budget or self.budget).limits


def export(source: Source, out: Path, options: Options, report: Reporter = silent) -> Results:
    """Export, quantize, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Raises:
        DataError: for images that cannot be used.
        ExportError: when the float model does not match its source, a layer fell back to float, or a variant
            drifts beyond the limits. Nothing is written then.
    """
    source = _embedding(source, options)
    images, exported = _images(source, options), source.exported
    variants = [ModelFile.opened("float32", exported.model, options.threads)]
    parity = _check_parity(source, variants[0].session, images.evaluation)
    if options.quantize or options.plan is not None:
        chosen, search = _quantize(source, images, options, report)
        variants.append(ModelFile.opened("int8", chosen.model, options.threads, chosen, search))
    if options.half:
        variants.append(ModelFile.opened("float16", to_float16(exported.model), options.threads))
    with staged(out) as folder:
        results = measure(
            source, parity, images, variants, folder, report, plan=options.plan, threads=options.threads
        )
        _check_limits(results, options)
        results = replace(results, warnings=_doubts(source, images, results, variants, options))
        _write_reports(results, variants, folder)
    return results


def _embedding(source: Source, options: Options) -> Source:
    """Return the source with the outputs that the options want; refuse limits that do not apply to them."""
    if options.embedding:
        source = with_embedding(source)
    if options.min_cosine is not None and source.embedding is None:
        raise ExportError(
            "--min-cosine limits the drift of embeddings, the model gives none; add --embedding"
        )
    if not source.labels and (options.budget.limits or options.merge_tokens is not None):
        raise ExportError(
            "the model has no classes: --max-drift, --min-agreement, --min-sqnr and --merge-tokens judge "
            "logits; limit the drift of its embeddings with --min-cosine"
        )
    return source


def _doubts(
    source: Source, images: ExportImages, results: Results, variants: list[ModelFile], options: Options
) -> tuple[str, ...]:
    """Return what the chosen images cannot show, or should not be believed for."""
    quantized = next((each.quantized for each in variants if each.quantized is not None), None)
    some = images.evaluation.subset(range(min(LAYER_IMAGES, len(images.evaluation))))
    calibrated = quantized is not None and options.plan is None
    clipped = None
    if quantized is not None and not quantized.plan.merging:
        feed = batches(some, source.preprocess)
        clipped = clipped_activations(source.exported.model, quantized.plan, feed, threads=options.threads)
    shown = images.calibration.subset(range(min(JUDGED_IMAGES, len(images.calibration))))
    evidence = Evidence(
        calibration=images.calibration if calibrated else None,
        evaluation=images.evaluation,
        search=images.search,
        targets=results.targets,
        labels=source.labels,
        logits=results.variants[0].logits,
        variant=next((each.logits for each in results.variants if each.variant == "int8"), None),
        budget=options.budget,
        trained_on=source.trained_on,
        clipped=clipped,
    )
    pixels = (image for batch in batches(shown, source.preprocess) for image in batch) if calibrated else ()
    return doubts(evidence, pixels)


def _quantize(
    source: Source, images: ExportImages, options: Options, report: Reporter
) -> tuple[Quantized, Search | None]:
    model, merging = source.exported.model, dict[str, int]()
    if options.merge_tokens is not None and (options.plan is not None or not options.quantize):
        raise PlanError(
            '--merge-tokens goes with --quantize and without --plan; in a plan, edit its "merging"'
        )
    if options.plan is not None:
        given = read_plan(options.plan)
        if given.merging and not source.labels:
            raise PlanError(f'{options.plan}: it merges tokens, which needs classes; empty its "merging"')
        return apply_plan(model, given), None
    with report("calibrating", len(images.calibration)) as progress:
        chosen = quantize(
            model,
            _counted(batches(images.calibration, source.preprocess), progress),
            target=options.target,
            keep_float=options.keep_float,
            threads=options.threads,
        )
    if isinstance(options.merge_tokens, int):
        merging = middle_merging(model, options.merge_tokens)
    if images.search is None:
        return (apply_plan(model, replace(chosen.plan, merging=merging)) if merging else chosen), None
    with report("searching", len(chosen.plan.quantized())) as progress:
        try:
            search = search_plan(
                model,
                chosen.plan,
                batches(images.search, source.preprocess),
                options.budget,
                targets=images.search.targets,
                merge_within=options.merge_budget,
                threads=options.threads,
                progress=progress,
            )
        except BudgetError as error:
            raise _too_far("int8", str(error)) from error
    plan = replace(search.plan, merging=merging or search.plan.merging)
    return (chosen if plan == chosen.plan else apply_plan(model, plan)), search


def read_plan(path: Path) -> QuantizationPlan:
    """Raises PlanError, naming the file, when it is not a plan."""
    try:
        return QuantizationPlan.from_json(path.read_text(encoding="utf-8"))
    except (PlanError, OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: {error}") from error


def _images(source: Source, options: Options) -> ExportImages:
    given = options.calibration or options.evaluation
    if given is None:
        raise DataError(
            "expected images like those the model will meet, found none given; add --calibration IMAGES"
        )
    chosen = choose_images(
        given,
        options.evaluation,
        samples=options.samples,
        evaluation_samples=options.evaluation_samples,
        search=options.searches,
    )
    evaluation = labeled_as(chosen.evaluation, source.labels)
    search = None if chosen.search is None else labeled_as(chosen.search, source.labels)
    for each in (evaluation, search):
        if options.max_drift is not None and each is not None and each.targets is None:
            raise DataError(
                f"{each.name}: --max-drift needs known classes, images in folders named as "
                "the classes; for loose images use --min-agreement"
            )
    return replace(chosen, evaluation=evaluation, search=search)


def _counted(feed: Iterator[Array], progress: Progress) -> Iterator[Array]:
    for batch in feed:
        yield batch
        progress(len(batch))


def _check_parity(source: Source, session: ort.InferenceSession, images: Images) -> float:
    some = images.subset(range(min(PARITY_IMAGES, len(images))))
    batch = np.concatenate(list(batches(some, source.preprocess)))
    expected = source.reference(batch)
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


def _check_limits(results: Results, options: Options) -> None:
    for each in results.variants[1:]:
        found = (results.embeddings or {}).get(each.variant)
        if found is not None and (far := found.misses(options.min_cosine)):
            raise _too_far(each.variant, "; ".join(far))
        if each.drift is None:  # a model without classes
            continue
        merged = each.variant == "int8" and results.merging is not None
        budget = options.merge_budget if merged else None
        failures = (budget or options.budget).misses(each.drift)
        if failures and merged:
            failures.append("it merges tokens: merge fewer of them (--merge-tokens R) or none")
        elif failures and each.variant == "int8":
            worst = ", ".join(f"{name} ({db:.1f} dB)" for name, db in worst_layers(each))
            failures.append(f"furthest from float: {worst}")
        if failures:
            raise _too_far(each.variant, "; ".join(failures))


def _too_far(variant: Variant, why: str) -> DriftError:
    advice = "give more calibration images or keep layers in float (--keep-float)"
    if variant != "int8":
        advice = "leave --fp16 out"
    return DriftError(f"{variant} drifts beyond the limit: {why}. Nothing was written; {advice}")


def worst_layers(result: VariantResult, count: int = 5) -> list[tuple[str, float]]:
    """The linears whose output is furthest from float, worst first."""
    return sorted(result.layers.items(), key=lambda item: item[1])[:count]


def _write_reports(results: Results, variants: list[ModelFile], folder: Path) -> None:
    from export.report.html import render

    for each in variants:
        if each.quantized is not None:
            (folder / "plan.json").write_text(each.quantized.plan.to_json(), encoding="utf-8")
    document = json.dumps(results.to_dict(), indent=1) + "\n"
    (folder / "report.json").write_text(document, encoding="utf-8")
    (folder / "report.html").write_text(render(results), encoding="utf-8")
