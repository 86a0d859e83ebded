"""Choose what INT8 is made of: calibrate, and search a plan within the limits; or apply a given plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from calibration.graph import Array
from calibration.merging.search import middle_merging
from calibration.plan import PlanError, QuantizationPlan
from calibration.quantize import Quantized, apply_plan, quantize
from calibration.search import BudgetError, Search, search_plan
from export.checks import too_far
from export.images import ExportImages
from export.measure.inference import Progress, batches
from export.measure.variants import Reporter
from export.options import Options
from export.source import Source
from vit.data.images import Images


def quantize_source(
    source: Source, images: ExportImages, options: Options, report: Reporter
) -> tuple[Quantized, Search | None]:
    """Quantize the model of a source as the options say.

    Returns:
        the INT8 model with its plan, and the search where one was made.

    Raises:
        PlanError: for a plan that cannot be read or does not fit, or options that do not go with it.
        DriftError: if no plan is within the limits.
    """
    model, merging = source.exported.model, dict[str, int]()
    if options.merge_tokens is not None and (options.plan is not None or not options.quantize):
        raise PlanError(
            '--merge-tokens goes with --quantize and without --plan; in a plan, edit its "merging"'
        )
    if options.plan is not None:
        return _apply_given(source, options.plan), None
    chosen = _calibrate(source, images.calibration, options, report)
    if isinstance(options.merge_tokens, int):
        merging = middle_merging(model, options.merge_tokens)
    if images.search is None:
        return (apply_plan(model, replace(chosen.plan, merging=merging)) if merging else chosen), None
    search = _search(source, images.search, chosen.plan, options, report)
    plan = replace(search.plan, merging=merging or search.plan.merging)
    return (chosen if plan == chosen.plan else apply_plan(model, plan)), search


def _apply_given(source: Source, path: Path) -> Quantized:
    given = read_plan(path)
    if given.merging and not source.labels:
        raise PlanError(f'{path}: it merges tokens, which needs classes; empty its "merging"')
    return apply_plan(source.exported.model, given)


def _calibrate(source: Source, images: Images, options: Options, report: Reporter) -> Quantized:
    with report("calibrating", len(images)) as progress:
        return quantize(
            source.exported.model,
            _counted(batches(images, source.preprocess), progress),
            target=options.target,
            keep_float=options.keep_float,
            threads=options.threads,
        )


def _search(
    source: Source, images: Images, plan: QuantizationPlan, options: Options, report: Reporter
) -> Search:
    with report("searching", len(plan.quantized())) as progress:
        try:
            return search_plan(
                source.exported.model,
                plan,
                batches(images, source.preprocess),
                options.budget,
                targets=images.targets,
                merge_within=options.merge_budget,
                threads=options.threads,
                progress=progress,
            )
        except BudgetError as error:
            raise too_far("int8", str(error)) from error


def read_plan(path: Path) -> QuantizationPlan:
    """Read a plan.json.

    Raises:
        PlanError: naming the file, when it is not a plan.
    """
    try:
        return QuantizationPlan.from_json(path.read_text(encoding="utf-8"))
    except (PlanError, OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: {error}") from error


def _counted(feed: Iterator[Array], progress: Progress) -> Iterator[Array]:
    for batch in feed:
        yield batch
        progress(len(batch))
