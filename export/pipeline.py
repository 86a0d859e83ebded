"""From a checkpoint or an ONNX model to measured model files: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.graph.edit import Array
from calibration.graph.memory import release_memory, weights_on_disk
from calibration.plan import read_plan
from calibration.quantize_model import QuantizedModel, apply_plan, quantize
from calibration.search import BudgetError, PlanSearch, search_plan
from calibration.token_merging.merge_schedule import schedule_middle_blocks
from export.check_options import check_with_graph, open_export_images
from export.check_results import check_limits, check_parity, drift_error
from export.graph.float16 import to_float16
from export.image_sets import ExportImages, use_model_classes
from export.measure.inference import ModelFile, Run, ShowStep, batches, run_variants, show_nothing
from export.options import Options
from export.report import SECTIONS
from export.report.evidence import Evidence
from export.report.npu_simulation import NpuSimulation
from export.report.provenance import describe_environment, name_producer
from export.report.quantized_layers import QuantizedLayers
from export.report.reliability import Reliability
from export.report.section import Results, VariantResult
from export.report.self_tests import SelfTests
from export.sources.source import Source, ensure_source_embedding
from export.write_artifact import find_stale_files, stage_files, write_model
from runtime.command.locking import only_writer
from runtime.model_file.artifact import FILE_NAMES, Metadata
from vit.data.datasets import Images
from vit.data.public import public_name


def export(
    source: Source,
    out: Path,
    options: Options,
    show_step: ShowStep = show_nothing,
    images: ExportImages | None = None,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> Results:
    """Export, quantize, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Args:
        source: the float model.
        out: the folder for the files.
        options: what to make, with which images and limits.
        show_step: shows each long step.
        images: what `open_export_images` chose before; None to choose them now.
        say: takes a sentence for people, about files in the folders that are no images, and about model
            files of an earlier export.

    Returns:
        What the report shows.

    Raises:
        DataError: for images that cannot be used.
        ExportError: when the float model does not match its source, a layer fell back to float, or a variant
            drifts beyond the limits. Nothing is written then.
        OutputError: when another process writes into `out`.
    """
    check_with_graph(options, source)
    if options.embedding:
        source = ensure_source_embedding(source)
    images = use_model_classes(images or open_export_images(options, source.labels), source.labels)
    for sentence in images.notes:
        say(sentence)
    with only_writer(out), weights_on_disk(source.exported.model) as large:
        float32 = ModelFile("float32", source.exported.model)
        with show_step(f"comparing with {source.reference_name}"):
            parity = check_parity(source, float32.open(options.threads), images.evaluation)
        if large:
            source.reference.release_memory()
            release_memory(source.exported.model)
        variants = [float32, *_make_variants(source, images, options, show_step)]
        with stage_files(out) as folder:
            run = run_variants(source, images, options, variants, parity, show_step)
            results = _measure_sections(run, folder, show_step)
            check_limits(results)
            _write_reports(run, results, folder)
    for path in find_stale_files(out, [each.file for each in results.variants]):
        say(f"{path}: of an earlier export and not replaced; delete it, or choose another --out")
    return results


def _make_variants(
    source: Source, images: ExportImages, options: Options, show_step: ShowStep
) -> list[ModelFile]:
    """Return the variants other than float32."""
    variants = []
    if options.writes_int8:
        quantized, search = _quantize(source, images, options, show_step)
        variants.append(ModelFile("int8", quantized.model, quantized, search))
    if options.fp16:
        with show_step("writing float16"):
            variants.append(ModelFile("float16", to_float16(source.exported.model)))
    return variants


def _quantize(
    source: Source, images: ExportImages, options: Options, show_step: ShowStep
) -> tuple[QuantizedModel, PlanSearch | None]:
    """Calibrate and search a plan within the limits, or apply a plan file; None without a search."""
    model, merging = source.exported.model, dict[str, int]()
    if options.plan is not None:
        with show_step("writing the plan"):
            return apply_plan(model, read_plan(options.plan)), None
    chosen = _calibrate(source, images.calibration, options, show_step)
    if isinstance(options.merge_tokens, int):
        merging = schedule_middle_blocks(model, options.merge_tokens)
    if images.search is None:
        return (apply_plan(model, replace(chosen.plan, merging=merging)) if merging else chosen), None
    with show_step("searching a plan within the limits", unit="plan") as progress:
        try:
            search = search_plan(
                model,
                chosen.plan,
                batches(images.search, source.preprocess),
                options.budget,
                targets=images.search.targets,
                same_name=images.search.same_name,
                merge_within=options.merge_budget,
                threads=options.threads,
                progress=progress,
            )
        except BudgetError as error:
            raise drift_error("int8", str(error)) from error
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


def _measure_sections(run: Run, folder: Path, show_step: ShowStep) -> Results:
    """Measure each section of the report, and write the model files, whose metadata holds some figures."""
    with show_step("comparing layers"):
        run.once(QuantizedLayers.measure)
    with show_step("judging the evidence"):
        run.once(Evidence.measure)
    with show_step("making the self-test"):
        run.once(SelfTests.measure)
    with show_step("simulating an NPU"):
        run.once(NpuSimulation.measure)
    sections = tuple(section for kind in SECTIONS if (section := run.once(kind.measure)) is not None)
    evaluation = run.images.evaluation
    variants = []
    for each in run.variants:
        measured = {"images": len(evaluation), "source": public_name(evaluation.name)}
        for section in sections:
            measured |= section.metadata(each.variant)
        variants.append(_write_variant(run, each, measured, folder))
    return Results(
        producer=name_producer(),
        source=run.source.description,
        preprocess=run.source.preprocess,
        labels=run.source.labels,
        environment=describe_environment(),
        evaluation={
            "source": public_name(evaluation.name),
            "images": len(evaluation),
            "labeled": evaluation.targets is not None,
            "chosen": run.images.note,
        },
        images=evaluation,
        variants=tuple(variants),
        sections=sections,
    )


def _write_variant(run: Run, each: ModelFile, measured: dict[str, Any], folder: Path) -> VariantResult:
    source, reliability = run.source, run.once(Reliability.measure)
    metadata = Metadata(
        variant=each.variant,
        preprocess=source.preprocess,
        labels=source.labels,
        embedding=source.embedding,
        temperature=1.0 if reliability is None else reliability.temperature,
        target=each.target or "any-cpu",
        source=source.description,
        measured=measured,
        producer=name_producer(),
    )
    self_test = run.once(SelfTests.measure).tests[each.variant]
    name = FILE_NAMES[metadata.file_kind]
    size, sha256 = write_model(folder / name, each.model, metadata, self_test)
    return VariantResult(
        variant=each.variant,
        file=name,
        bytes=size,
        sha256=sha256,
        logits=run.logits[each.variant],
        latency=run.latency[each.variant],
    )


def _write_reports(run: Run, results: Results, folder: Path) -> None:
    if run.int8 is not None and run.int8.quantized is not None:
        (folder / "plan.json").write_text(run.int8.quantized.plan.to_json(), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(results.to_html(), encoding="utf-8")
