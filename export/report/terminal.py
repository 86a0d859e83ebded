"""The results as a person reads them in a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.measure.reliability import Reliability
from export.measure.results import Results, VariantResult
from export.report.conclusion import next_step
from export.report.embeddings import embedding_lines
from export.report.merging import merging_line
from export.report.precision import layers_in_words, shortened
from runtime.text import format_count


def table(results: Results, out: Path) -> str:
    """Float and INT8 side by side, one row each, and what the figures were measured on."""
    header = ("", "top-1", "agreement", "SQNR", "latency", "size", "file")
    rows = [header, *(_row(results, each, out) for each in results.variants)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    evaluation = results.evaluation
    images = format_count(evaluation["images"], "image")
    lines.append(f"measured on {images} of {evaluation['source']} ({evaluation['chosen']})")
    lines.append(f"latency: median of one image, one thread, {results.environment['cpu']}")
    lines.append(f"float32 equals {results.reference} to {results.parity:.0e} of the largest logit")
    if results.layers is not None:
        lines.append(f"int8: {layers_in_words(results.layers)}")
    lines += embedding_lines(results)
    if results.search:
        lines.append(_given_up(results))
    if results.merging is not None:
        lines.append(merging_line(results))
    elif tried := results.search.get("merging"):
        lines.append(_no_merging(tried))
    if results.reliability is not None:
        lines.append(_scores(results.reliability))
    lines.append(f"limits: {results.verdict.text}")
    if results.verdict.status == "not judged":
        lines += _changed(results)
    lines += [f"warning: {sentence}" for sentence in results.other_warnings]
    lines.append(f"next: {next_step(results, f'{out}{os.sep}')}")
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines)


def _changed(results: Results) -> list[str]:
    """Name the images whose label changed, for each variant, the surest of float32 first."""
    lines = []
    for each in results.variants[1:]:
        found = results.changed(each)
        names = [
            f"{image['image']} ({image['float32']['label']} → {image[each.variant]['label']})"
            for image in found
        ]
        if names:
            lines.append(
                f"changed by {each.variant}: {format_count(len(found), 'image')}: {shortened(names)}"
            )
    return lines


def _given_up(results: Results) -> str:
    """Describe the layers that a search returned to float32, and their cost."""
    search = results.search
    names = [layer["name"] for layer in search["returned_to_float"]]
    others = f"{format_count(search['images'], 'image')} of its own"
    if results.verdict.status == "not judged":
        return f"search: on {others}; its result cannot be judged, see limits"
    if not names:
        return f"search: on {others}, limits met with every planned layer in int8"
    (int8,) = [each for each in results.variants if each.variant == "int8"]
    before, after = search["latency_ms_before"]["median"], int8.latency["median"]
    return (
        f"search: on {others}, limits met with {shortened(names)} in float32, "
        f"{before:.2f} → {after:.2f} ms per image"
    )


def _no_merging(tried: Mapping[str, Any]) -> str:
    """Say why a search merges no token."""
    if not tried["trials"]:
        return "token merging: none, dense int8 itself misses the limits that merging must keep"
    least = min(tried["trials"], key=lambda trial: trial["merged"])
    return f"token merging: none, {least['merged']} per block is too much: {'; '.join(least['misses'])}"


def _scores(found: Reliability) -> str:
    """Say what the temperature does to the scores."""
    errors = ", ".join(
        f"{name} {100 * found.before[name]:.1f} → {100 * found.after[name]:.1f} %" for name in found.after
    )
    return (
        f"scores: temperature {found.temperature:g}; expected calibration error {errors} "
        f"(on {format_count(found.images, 'image')}, each half with the temperature of the other)"
    )


def _row(results: Results, each: VariantResult, out: Path) -> tuple[str, ...]:
    top1 = "-"
    if results.targets is not None:
        top1 = f"{100 * float(np.mean(results.right(each))):.2f} %"
    drift = each.drift
    return (
        each.variant,
        top1,
        "-" if drift is None else f"{drift.agreement:.2f} %",
        "-" if drift is None else f"{drift.sqnr:.1f} dB",
        f"{each.latency['median']:.2f} ms",
        f"{each.bytes / 1e6:.2f} MB",
        str(out / each.file),
    )
