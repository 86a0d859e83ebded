"""report.html: what an export measured, as one page that a person wants to open. It needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.measure.verify import FLOAT_KERNELS, INTEGER_KERNELS
from export.measure.results import Results, VariantResult
from export.measure.verdict import NAMES
from export.report.calibration import calibration_section
from export.report.charts import Bar, bar_chart, kinds_of, layer_plot, marker, read_layers
from export.report.classes import class_section
from export.report.conclusion import next_step
from export.report.confusion import confusion_section
from export.report.embeddings import embedding_section
from export.report.figures import (
    flattened,
    headline,
    megabytes,
    milliseconds,
    more_than_chance,
    name_of,
    side_by_side,
    tiles,
)
from export.report.merging import merging_section
from export.report.precision import layers_in_words
from export.report.preprocessing import example, in_words
from export.report.thumbnails import changed_images, mistaken_images
from export.report.usage import IMAGE, usage
from vit.page.template import render_page

WORST = 5
SIGNS = {  # CSS classes of the verdict
    "met": "met", "missed": "unjudged", "not judged": "unjudged", "no limit": "unset",
}  # fmt: skip


def render(results: Results) -> str:
    """The page as one self-contained HTML document: styles, charts and images are inside it."""
    variants = results.variants
    return render_page(
        "export.report",
        "report.html.j2",
        results=results,
        model=str(results.source.get("name") or results.source.get("checkpoint") or "model"),
        verdict=(SIGNS[results.verdict.status], results.verdict.text),
        next=next_step(results),
        origin=_origin(results),
        mistakes=mistaken_images(results),
        usage=usage(results),
        photo=IMAGE,
        columns=[name_of(each) for each in variants],
        names={each.variant: name_of(each) for each in variants},
        rows=side_by_side(results),
        latency=bar_chart(
            [_latency_bar(each) for each in variants], "Milliseconds for one image on one thread"
        ),
        size=bar_chart([_size_bar(each) for each in variants], "Size of the model file"),
        drifts=[_drift(results, each) for each in variants[1:]],
        steps=in_words(results.preprocess),
        example=example(results),
        classes=class_section(results),
        confusion=confusion_section(results),
        scores=_scores(results),
        embeddings=embedding_section(results),
        merging=merging_section(results),
        calibration=calibration_section(results),
        made=_made(results),
        passes=[(name.replace("_", " "), count) for name, count in results.passes.items() if count],
    )


def _origin(results: Results) -> list[str]:
    """Say where the weights come from, as far as the source tells."""
    source = results.source
    file = next((source[key] for key in ("checkpoint", "weights", "onnx") if key in source), "")
    parts = [f"file {file}"] if file else []
    if "imported" in source:
        parts.append(f"weights imported from {source['imported']}")
    if "trained_on" in source:
        parts.append(f"trained on {source['trained_on']}")
    if "trained_from" in source:
        parts.append(f"fine-tuned from {source['trained_from']}")
    return parts


def _latency_bar(variant: VariantResult) -> Bar:
    median = variant.latency["median"]
    return Bar(name_of(variant), median, milliseconds(median), variant.variant)


def _size_bar(variant: VariantResult) -> Bar:
    return Bar(name_of(variant), variant.bytes, megabytes(variant.bytes), variant.variant)


def _drift(results: Results, variant: VariantResult) -> dict[str, Any]:
    """Everything that compares one variant with float32."""
    layers = read_layers(variant.layers)
    changed, more = changed_images(results, variant)
    return {
        "name": name_of(variant),
        "headline": headline(results, variant),
        "chance": more_than_chance(results, variant),
        "tiles": tiles(results, variant),
        "layers": bool(layers),
        "legend": [(kind, marker(i)) for i, kind in enumerate(kinds_of(layers))],
        "wide": layer_plot(layers, width=900, height=340),
        "narrow": layer_plot(layers, width=340, height=330),
        "worst": sorted(variant.layers.items(), key=lambda item: item[1])[:WORST],
        "changed": changed,
        "more": more,
        "kernels": _kernels(variant.kernels),
        "summary": layers_in_words(results.layers) if results.layers is not None else "",
    }


def _kernels(counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Operator, how often, and of which kind: integer products first, then float ones, then the rest."""
    kinds = {name: 0 if name in INTEGER_KERNELS else 1 if name in FLOAT_KERNELS else 2 for name in counts}
    order = sorted(counts, key=lambda name: (kinds[name], -counts[name], name))
    return [(name, counts[name], ("integer", "product", "other")[kinds[name]]) for name in order]


def _scores(results: Results) -> dict[str, Any] | None:
    """Effect of the temperature on the scores; None where too few classes are known to fit one."""
    found = results.reliability
    if found is None:
        return None
    return {
        "temperature": f"{found.temperature:g}",
        "helps": found.helps,
        "images": found.images,
        "rows": [
            (NAMES.get(name, name), f"{100 * found.before[name]:.1f} %", f"{100 * found.after[name]:.1f} %")
            for name in found.after
        ],
    }


def _made(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    parity = [("largest difference", f"{results.parity:.1e} of the largest logit")]
    return [
        ("Run", [("date", results.made["date"]), ("producer", results.producer)]),
        ("Model", flattened(results.source)),
        *([("Calibrated on", flattened(results.calibration))] if results.calibration else []),
        *([("Within the budget", flattened(_budget(results)))] if results.search else []),
        ("Measured on", flattened(results.evaluation)),
        (f"float32 against {results.reference}", parity),
        ("Measured with", flattened(results.environment)),
    ]


def _budget(results: Results) -> dict[str, Any]:
    search = results.search
    (int8,) = [each for each in results.variants if each.variant == "int8"]
    before, after = (f"{ms['median']:.2f} ms" for ms in (search["latency_ms_before"], int8.latency))
    returned = ", ".join(f"{each['name']} ({each['sqnr']:.1f} dB)" for each in search["returned_to_float"])
    return {
        "searched on images": search["images"],
        "agreement before": f"{search['before']['agreement']:.2f} %",
        "agreement after": f"{search['after']['agreement']:.2f} %",
        "returned to float": returned or "nothing",
        "latency before": before,
        "latency after": after,
    }
