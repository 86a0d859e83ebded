"""From a checkpoint or a foreign ONNX to measured model files: the work behind `python -m export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from calibration.graph.memory import aside, let_go
from export.check_options import check_with_graph, open_export_images
from export.check_results import add_judgment, check_limits, check_parity
from export.graph.float16 import to_float16
from export.image_sets import ExportImages, labeled
from export.measure.model_file import ModelFile
from export.measure.results import Results
from export.measure.variants import Reporter, measure, silent
from export.options import Options
from export.quantization import quantize_source
from export.sources.source import Source, with_embedding
from export.write_artifact import left_over, staged
from runtime.command.locking import only_writer


def export(
    source: Source,
    out: Path,
    options: Options,
    report: Reporter = silent,
    images: ExportImages | None = None,
    *,
    say: Callable[[str], object] = lambda _: None,
) -> Results:
    """Export, quantize, measure and write the model files, `plan.json`, `report.json` and `report.html`.

    Args:
        source: the float model.
        out: the folder for the files.
        options: what to make, with which images and limits.
        report: shows each long step.
        images: what `open_export_images` chose before; None to choose them now.
        say: takes a sentence for people, about files in the folders that are no images, and about model
            files of an earlier export.

    Raises:
        DataError: for images that cannot be used.
        ExportError: when the float model does not match its source, a layer fell back to float, or a variant
            drifts beyond the limits. Nothing is written then.
        OutputError: when another process writes into `out`.
    """
    check_with_graph(options, source)
    if options.embedding:
        source = with_embedding(source)
    images = labeled(images or open_export_images(options, source.labels), source.labels)
    for sentence in images.notes:
        say(sentence)
    with only_writer(out), aside(source.exported.model) as large:
        float32 = ModelFile("float32", source.exported.model)
        with report(f"comparing with {source.reference_name}"):
            parity = check_parity(source, float32.opened(options.threads), images.evaluation)
        if large:
            source.reference.let_go()
            let_go(source.exported.model)
        results = _export(source, parity, float32, images, out, options, report)
    for path in left_over(out, [each.file for each in results.variants]):
        say(f"{path}: of an earlier export and not replaced; delete it, or choose another --out")
    return results


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
    if options.writes_int8:
        chosen, search = quantize_source(source, images, options, report)
        variants.append(ModelFile("int8", chosen.model, chosen, search))
    if options.fp16:
        with report("writing float16"):
            variants.append(ModelFile("float16", to_float16(float32.model)))
    with staged(out) as folder:
        results = measure(
            source, parity, images, variants, folder, report, plan=options.plan, threads=options.threads
        )
        check_limits(results, options)
        with report("judging the evidence"):
            results = add_judgment(source, images, results, variants, options)
        _write_reports(results, variants, folder)
    return results


def _write_reports(results: Results, variants: list[ModelFile], folder: Path) -> None:
    from export.report.html import render

    for each in variants:
        if each.quantized is not None:
            (folder / "plan.json").write_text(each.quantized.plan.to_json(), encoding="utf-8")
    document = json.dumps(results.to_dict(), indent=1) + "\n"
    (folder / "report.json").write_text(document, encoding="utf-8")
    (folder / "report.html").write_text(render(results), encoding="utf-8")
