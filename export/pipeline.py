"""From a checkpoint or a foreign ONNX to measured model files: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from calibration.serialize import aside
from export.checks import ExportError, check_limits, check_parity, with_judgment
from export.files import staged
from export.float16 import to_float16
from export.images import ExportImages, choose_images
from export.measure.model_file import ModelFile
from export.measure.results import Results
from export.measure.variants import Reporter, measure, silent
from export.options import Options
from export.quantization import quantize_source
from export.source import Source, with_embedding
from vit.data.images import DataError
from vit.data.labels import labeled_as


def export(
    source: Source,
    out: Path,
    options: Options,
    report: Reporter = silent,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> Results:
    """Export, quantize, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Args:
        source: the float model.
        out: the folder for the files.
        options: what to make, with which images and limits.
        report: shows progress.
        say: takes a sentence for people, about files in the folders that are no images.

    Raises:
        DataError: for images that cannot be used.
        ExportError: when the float model does not match its source, a layer fell back to float, or a variant
            drifts beyond the limits. Nothing is written then.
    """
    source = _embedding(source, options)
    images = _images(source, options)
    for sentence in images.notes:
        say(sentence)
    with aside(source.exported.model) as large:
        float32 = ModelFile("float32", source.exported.model)
        parity = check_parity(source, float32.opened(options.threads), images.evaluation)
        if large:
            source.reference.let_go()
        return _export(source, parity, float32, images, out, options, report)


def _export(
    source: Source,
    parity: float,
    float32: ModelFile,
    images: ExportImages,
    out: Path,
    options: Options,
    report: Reporter,
) -> Results:
    variants = [float32]
    if options.quantize or options.plan is not None:
        chosen, search = quantize_source(source, images, options, report)
        variants.append(ModelFile("int8", chosen.model, chosen, search))
    if options.half:
        variants.append(ModelFile("float16", to_float16(float32.model)))
    with staged(out) as folder:
        results = measure(
            source, parity, images, variants, folder, report, plan=options.plan, threads=options.threads
        )
        check_limits(results, options)
        results = with_judgment(source, images, results, variants, options)
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


def _write_reports(results: Results, variants: list[ModelFile], folder: Path) -> None:
    from export.report.html import render

    for each in variants:
        if each.quantized is not None:
            (folder / "plan.json").write_text(each.quantized.plan.to_json(), encoding="utf-8")
    document = json.dumps(results.to_dict(), indent=1) + "\n"
    (folder / "report.json").write_text(document, encoding="utf-8")
    (folder / "report.html").write_text(render(results), encoding="utf-8")
