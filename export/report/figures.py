"""The report's figures as text, each with what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.measure.statistics import Interval, Paired, sqnr_interval, wilson
from export.measure.results import Results, VariantResult
from export.measure.verdict import NAMES
from runtime.text import format_count

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Figure:
    """One value, and in small, on up to two lines, what belongs to it: its 95 % interval, or a ratio."""

    value: str
    note: str = ""
    second: str = ""


def name_of(variant: VariantResult) -> str:
    return NAMES.get(variant.variant, variant.variant)


def same_label(results: Results, variant: VariantResult) -> int:
    """On how many images the variant's label is float32's."""
    return int((variant.logits.argmax(axis=1) == results.variants[0].logits.argmax(axis=1)).sum())


def side_by_side(results: Results) -> list[tuple[str, list[Figure]]]:
    """The rows of the first table: what it is, and a figure for each variant."""
    of = results.variants
    rows = []
    if results.targets is not None:
        rows.append(("Top-1", [_share(int(results.right(each).sum()), len(each.logits)) for each in of]))
    if results.labels:
        rows.append(("Same label as float32", [_agreement(results, each) for each in of]))
        rows.append(("Logits, signal to noise", [_sqnr(results, each) for each in of]))
        rows.append(("Largest error of a logit", [_largest_error(each) for each in of]))
    rows.append(("One image, one thread", [_latency(results, each) for each in of]))
    rows.append(("Size", [_size(results, each) for each in of]))
    return rows


def tiles(results: Results, variant: VariantResult) -> list[tuple[str, Figure]]:
    """The four or five figures that matter, for a variant other than float32."""
    found = [_likeness(results, variant)]
    if results.targets is not None:
        paired = Paired.of(results.right(results.variants[0]), results.right(variant))
        bounds = _interval(paired.interval(), 100, signed=True)
        found.append(("top-1 change", Figure(_points(100 * paired.difference), f"{bounds} points")))
    return [
        *found,
        *([("signal to noise", _sqnr(results, variant))] if results.labels else []),
        _against_float("faster", "slower", speed(results, variant), milliseconds(variant.latency["median"])),
        _against_float("smaller", "larger", size_ratio(results, variant), megabytes(variant.bytes)),
    ]


def _against_float(better: str, worse: str, ratio: float, note: str) -> tuple[str, Figure]:
    if ratio >= 1:
        return f"{better} than float32", Figure(f"{ratio:.2f}{TIMES}", note)
    return f"{worse} than float32", Figure(f"{1 / ratio:.2f}{TIMES}", note)


def _likeness(results: Results, variant: VariantResult) -> tuple[str, Figure]:
    """Return how like float32 it is: by its labels, or by its embeddings where it has no classes."""
    if results.labels:
        return "same label", _agreement(results, variant)
    each = (results.embeddings or {})[variant.variant]
    return "mean cosine", Figure(f"{each.cosine:.4f}", f"worst {each.worst_cosine:.4f}")


def headline(results: Results, variant: VariantResult) -> str:
    """Summarize the result in one sentence."""
    size, faster = size_in_words(results, variant), pace_in_words(speed(results, variant))
    return f"{name_of(variant)} is {size}, {faster}, and {_alike(results, variant)}."


def pace_in_words(ratio: float) -> str:
    """Return a speed-up in words: "1.83× faster"."""
    if 0.95 < ratio < 1.05:
        return "about as fast"
    return f"{ratio:.2f}{TIMES} faster" if ratio > 1 else f"{1 / ratio:.2f}{TIMES} slower"


def size_in_words(results: Results, variant: VariantResult) -> str:
    """Return the size of a variant against float32 in words: "3.9× smaller"."""
    ratio = size_ratio(results, variant)
    return f"{ratio:.1f}{TIMES} smaller" if ratio >= 1 else f"{1 / ratio:.1f}{TIMES} larger"


def _alike(results: Results, variant: VariantResult) -> str:
    if not results.labels:
        cosine = (results.embeddings or {})[variant.variant].cosine
        return f"gives embeddings with a mean cosine of {cosine:.4f} to float32's"
    total, same = len(variant.logits), same_label(results, variant)
    images = format_count(total, "image")
    label = f"all {images}" if same == total else f"{same:,} of {images}"
    return f"gives the same label as float32 on {label}"


def more_than_chance(results: Results, variant: VariantResult) -> str:
    """Say in plain sentences whether the top-1 differs; nothing where the classes are unknown."""
    if results.targets is None:
        return ""
    paired = Paired.of(results.right(results.variants[0]), results.right(variant))
    interval = paired.interval()
    bounds = f"between {_points(100 * interval.low)} and {_points(100 * interval.high)} points (95 %)"
    if not paired.lost and not paired.gained:
        return (
            f"Both are right on exactly the same of the {paired.total:,} images. On others like them the "
            f"difference of top-1 lies {bounds}."
        )
    counts = f"{paired.lost} right in float32 only, {paired.gained} in {name_of(variant)} only"
    p = paired.p_value()
    verdict = "more than chance would give" if p < 0.05 else "no more than chance would give"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"
    return (
        f"The top-1 difference of {_points(100 * paired.difference)} points is {verdict} "
        f"({counts}; McNemar's exact test, {shown}). On other such images it lies {bounds}."
    )


def speed(results: Results, variant: VariantResult) -> float:
    """Return the speed-up over float32: ratio of the median latencies."""
    return results.variants[0].latency["median"] / max(variant.latency["median"], 1e-9)


def size_ratio(results: Results, variant: VariantResult) -> float:
    return results.variants[0].bytes / max(variant.bytes, 1)


def megabytes(size: int) -> str:
    return f"{_three_digits(size / 1e6)} MB"


def milliseconds(time: float) -> str:
    return f"{_three_digits(time)} ms"


def _three_digits(value: float) -> str:
    """As many decimals as make three digits, and never more than two."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def flattened(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping of the results as rows of words."""
    return [(key.replace("_", " "), _text(value)) for key, value in document.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key.replace('_', ' ')} {_text(inner)}" for key, inner in value.items() if inner is not None
        )
    if isinstance(value, (list, tuple)):
        return (f" {TIMES} " if all(isinstance(each, int) for each in value) else "/").join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(count: int, total: int) -> Figure:
    return Figure(_percent(count / total, total), _interval(wilson(count, total), 100, total=total))


def _agreement(results: Results, variant: VariantResult) -> Figure:
    if variant.drift is None:
        return Figure(DASH)
    return _share(same_label(results, variant), len(variant.logits))


def _sqnr(results: Results, variant: VariantResult) -> Figure:
    if variant.drift is None:
        return Figure(DASH)
    reference = results.variants[0].logits
    if np.array_equal(reference, variant.logits):
        return Figure("no noise")
    interval = sqnr_interval(reference, variant.logits)
    if interval is None:
        return Figure(f"{variant.drift.sqnr:.1f} dB".replace("-", MINUS))
    low, high = (f"{bound:.1f}".replace("-", MINUS) for bound in (interval.low, interval.high))
    return Figure(
        f"{variant.drift.sqnr:.1f} dB".replace("-", MINUS),
        f"{low} to {high}" if interval.low < 0 else f"{low}{DASH}{high}",
    )


def _largest_error(variant: VariantResult) -> Figure:
    return Figure(DASH if variant.drift is None else f"{variant.drift.max_error:.3g}")


def _latency(results: Results, variant: VariantResult) -> Figure:
    least = f"least {_three_digits(variant.latency['min'])}"
    if variant is results.variants[0]:
        return Figure(milliseconds(variant.latency["median"]), least)
    return Figure(milliseconds(variant.latency["median"]), pace_in_words(speed(results, variant)), least)


def _size(results: Results, variant: VariantResult) -> Figure:
    ratio = "" if variant is results.variants[0] else size_in_words(results, variant)
    return Figure(megabytes(variant.bytes), ratio)


def _percent(share: float, total: int) -> str:
    """Two decimals only where one image is less than a tenth of a point."""
    return f"{100 * share:.{2 if total > 1000 else 1}f} %"


def _interval(interval: Interval, factor: float, *, signed: bool = False, total: int = 0) -> str:
    digits = 2 if total > 1000 else 1
    low, high = factor * interval.low, factor * interval.high
    if signed:
        return f"{_points(low)} to {_points(high)}"
    return f"{low:.{digits}f}{DASH}{high:.{digits}f}"


def _points(value: float) -> str:
    """With its sign, and none for what rounds to zero."""
    text = f"{abs(value):.2f}"
    if text == "0.00":
        return "0"
    return (MINUS if value < 0 else "+") + text
