"""Quantize the model of a source: calibrate and search a plan within the limits, or apply a plan file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from calibration.graph.edit import Array
from calibration.plan import QuantizationPlan, read_plan
from calibration.quantize_model import QuantizedModel, apply_plan, quantize
from calibration.search import BudgetError, PlanSearch, search_plan
from calibration.token_merging.merge_schedule import schedule_middle_blocks
from export.check_results import drift_error
from export.image_sets import ExportImages
from export.measure.inference import ShowStep, batches
from export.options import Options
from export.sources.source import Source
from vit.data.datasets import Images


def quantize_source(
    source: Source, images: ExportImages, options: Options, show_step: ShowStep
) -> tuple[QuantizedModel, PlanSearch | None]:
    """Return the INT8 model of a source with its plan, and the search where one was made.

    Raises:
        PlanError: for a plan that cannot be read or does not fit.
        DriftError: if no plan is within the limits.
    """
    model, merging = source.exported.model, dict[str, int]()
    if options.plan is not None:
        with show_step("writing the plan"):
            return apply_plan(model, read_plan(options.plan)), None
    chosen = _calibrate(source, images.calibration, options, show_step)
    if isinstance(options.merge_tokens, int):
        merging = schedule_middle_blocks(model, options.merge_tokens)
    if images.search is None:
        return (apply_plan(model, replace(chosen.plan, merging=merging)) if merging else chosen), None
    search = _search(source, images.search, chosen.plan, options, show_step)
    plan = replace(search.plan, merging=merging or search.plan.merging)
    with show_step("writing the plan"):
        return (chosen if plan == chosen.plan else apply_plan(model, plan)), search


def _calibrate(source: Source, images: Images, options: Options, show_step: ShowStep) -> QuantizedModel:
    with ExitStack() as step:
        progress = step.enter_context(show_step("calibrating", len(images)))

        def feed() -> Iterator[Array]:
            for batch in batches(images, source.preprocess):
                yield batch
                progress(len(batch))
            step.close()
            step.enter_context(show_step("choosing ranges and checking the kernels"))

        return quantize(
            source.exported.model,
            feed(),
            target=options.int8_target,
            keep_float=options.keep_float,
            threads=options.threads,
        )


def _search(
    source: Source, images: Images, plan: QuantizationPlan, options: Options, show_step: ShowStep
) -> PlanSearch:
    with show_step("searching a plan within the limits", unit="plan") as progress:
        try:
            return search_plan(
                source.exported.model,
                plan,
                batches(images, source.preprocess),
                options.budget,
                targets=images.targets,
                same_name=images.same_name,
                merge_within=options.merge_budget,
                threads=options.threads,
                progress=progress,
            )
        except BudgetError as error:
            raise drift_error("int8", str(error)) from error
