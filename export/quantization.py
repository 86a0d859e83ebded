"""Choose what INT8 is made of: calibrate, and search a plan within the limits; or apply a given plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from calibration.graph.edit import Array
from calibration.plan import QuantizationPlan, read_plan
from calibration.quantize import Quantized, apply_plan, quantize
from calibration.search import BudgetError, Search, search_plan
from calibration.token_merging.search import middle_merging
from export.check_results import drift_error
from export.image_sets import ExportImages
from export.measure.inference import batches
from export.measure.variants import Reporter
from export.options import Options
from export.sources.source import Source
from vit.data.datasets import Images


def quantize_source(
    source: Source, images: ExportImages, options: Options, report: Reporter
) -> tuple[Quantized, Search | None]:
    """Quantize the model of a source as the options say.

    Returns:
        the INT8 model with its plan, and the search where one was made.

    Raises:
        PlanError: for a plan that cannot be read or does not fit.
        DriftError: if no plan is within the limits.
    """
    model, merging = source.exported.model, dict[str, int]()
    if options.plan is not None:
        with report("writing the plan"):
            return apply_plan(model, read_plan(options.plan)), None
    chosen = _calibrate(source, images.calibration, options, report)
    if isinstance(options.merge_tokens, int):
        merging = middle_merging(model, options.merge_tokens)
    if images.search is None:
        return (apply_plan(model, replace(chosen.plan, merging=merging)) if merging else chosen), None
    search = _search(source, images.search, chosen.plan, options, report)
    plan = replace(search.plan, merging=merging or search.plan.merging)
    with report("writing the plan"):
        return (chosen if plan == chosen.plan else apply_plan(model, plan)), search


def _calibrate(source: Source, images: Images, options: Options, report: Reporter) -> Quantized:
    with ExitStack() as step:
        progress = step.enter_context(report("calibrating", len(images)))

        def feed() -> Iterator[Array]:
            for batch in batches(images, source.preprocess):
                yield batch
                progress(len(batch))
            step.close()
            step.enter_context(report("choosing ranges and checking the kernels"))

        return quantize(
            source.exported.model,
            feed(),
            target=options.int8_target,
            keep_float=options.keep_float,
            threads=options.threads,
        )


def _search(
    source: Source, images: Images, plan: QuantizationPlan, options: Options, report: Reporter
) -> Search:
    with report("searching a plan within the limits", unit="plan") as progress:
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
