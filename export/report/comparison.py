"""Each variant beside float32: labels, logits, latency and size, with what each figure is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measure.drift import Drift, measure_drift
from calibration.measure.statistics import Interval, Paired, sqnr_interval, wilson
from export.measure.inference import Run
from export.report.embedding_drift import EmbeddingDrift
from export.report.number_formats import (
    DASH,
    TIMES,
    cosine,
    decibel_interval,
    decibels,
    megabytes,
    milliseconds,
    pace,
    percent,
    points,
    share,
    share_interval,
    size_ratio,
    three_digits,
)
from export.report.section import Results, Section, VariantResult
from runtime.text import counted


@dataclass(frozen=True)
class Cell:
    """One figure, and in small, on up to two lines, what belongs to it: its 95 % interval, or a ratio."""

    value: str
    note: str = ""
    second: str = ""


@dataclass(frozen=True)
class Comparison(Section):
    """Drift of the logits of each variant, in a table with latency and size."""

    drifts: Mapping[str, Drift] = field(default_factory=dict)  # by variant other than float32
    sqnr: Mapping[str, Interval | None] = field(default_factory=dict)  # dB, 95 %; None for one image
    template = "comparison.j2"

    @classmethod
    def measure(cls, run: Run) -> Comparison:
        """Compare the logits of each variant with float32's; nothing for a model without classes."""
        if not run.source.labels:
            return cls()
        exact, truth = run.logits["float32"], run.images.evaluation.truth
        logits = {each.variant: run.logits[each.variant] for each in run.variants[1:]}
        return cls(
            drifts={name: measure_drift(exact, rows, *truth) for name, rows in logits.items()},
            sqnr={name: sqnr_interval(exact, rows) for name, rows in logits.items()},
        )

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the drift of a variant."""
        return {"drift": self.drifts[variant].to_dict()} if variant in self.drifts else {}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return top-1 and drift, in the fields of each model."""
        models: dict[str, dict[str, Any]] = {each.variant: {} for each in results.variants}
        for each in results.variants:
            if results.targets is not None:
                models[each.variant]["top1"] = 100 * float(np.mean(results.right(each)))
            models[each.variant] |= self.metadata(each.variant)
        return {"models": models}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the table, one row per variant, and what it was measured on."""
        header = ("", "top-1", "agreement", "SQNR", "latency", "size", "file")
        rows = [header, *(self._row(results, each, out) for each in results.variants)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        evaluation = results.evaluation
        images = counted(evaluation["images"], "image")
        return [
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            f"measured on {images} of {evaluation['source']} ({evaluation['chosen']})",
        ]

    def _row(self, results: Results, each: VariantResult, out: Path) -> tuple[str, ...]:
        drift = self.drifts.get(each.variant)
        known = results.targets is not None
        return (
            each.variant,
            percent(100 * float(np.mean(results.right(each))) if known else None),
            percent(None if drift is None else drift.agreement),
            "-" if drift is None else decibels(drift.sqnr),
            milliseconds(each.latency["median"]),
            megabytes(each.bytes),
            str(out / each.file),
        )

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the rows of the table, a figure for each variant."""
        kinds: list[tuple[str, Callable[[Results, VariantResult], Cell]]] = []
        if results.targets is not None:
            kinds.append(("Top-1", _top1))
        if results.labels:
            kinds += [
                ("Same label as float32", self.agreement),
                ("Logits, signal to noise", self.signal_to_noise),
                ("Largest error of a logit", self._largest_error),
            ]
        kinds += [("One image, one thread", _latency), ("Size", _size)]
        return {"rows": [(name, [cell(results, each) for each in results.variants]) for name, cell in kinds]}

    def agreement(self, results: Results, variant: VariantResult) -> Cell:
        """Return the share of images with float32's label."""
        if variant.variant not in self.drifts:
            return Cell(DASH)
        total = len(results.images)
        return _share(total - len(results.changed(variant)), total)

    def signal_to_noise(self, results: Results, variant: VariantResult) -> Cell:
        """Return the SQNR of the logits."""
        del results
        if variant.variant not in self.drifts:
            return Cell(DASH)
        value, interval = decibels(self.drifts[variant.variant].sqnr), self.sqnr[variant.variant]
        exact = interval is None or interval.low == interval.high
        return Cell(value, "" if interval is None or exact else decibel_interval(interval))

    def _largest_error(self, results: Results, variant: VariantResult) -> Cell:
        del results
        drift = self.drifts.get(variant.variant)
        return Cell(DASH if drift is None else f"{drift.max_error:.3g}")


@dataclass(frozen=True)
class LatencyAndSize(Section):
    """Latency and size as charts; `measure_latency` measures the time."""

    template = "latency_and_size.j2"

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Say how the latency in the table was measured."""
        del out
        return [f"latency: median of one image, one thread, {results.environment['cpu']}"]

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the bars: name, length, the text at the end, CSS class."""
        times = [(each, each.latency["median"]) for each in results.variants]
        return {
            "times": [(each.title, ms, milliseconds(ms), each.variant) for each, ms in times],
            "sizes": [
                (each.title, each.bytes, megabytes(each.bytes), each.variant) for each in results.variants
            ],
        }


@dataclass(frozen=True)
class Headlines(Section):
    """Sentences and tiles that compare each variant with float32, and the origin of the model."""

    template = "headlines.j2"

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the sentences and the tiles by variant, and where the weights come from."""
        return {
            "variants": [
                {
                    "headline": say_headline(results, each),
                    "chance": say_chance(results, each),
                    "tiles": make_tiles(results, each),
                }
                for each in results.variants[1:]
            ],
            "origin": _list_origin(results.source),
        }


def make_tiles(results: Results, variant: VariantResult) -> list[tuple[str, Cell]]:
    """Return the four or five figures that matter, for a variant other than float32."""
    found, comparison = [], results.get(Comparison)
    if results.labels:
        found.append(("same label", comparison.agreement(results, variant)))
    else:
        each = results.get(EmbeddingDrift).variants[variant.variant]
        found.append(("mean cosine", Cell(cosine(each.cosine), f"worst {cosine(each.worst_cosine)}")))
    if results.targets is not None:
        paired = _pair(results, variant)
        bounds = paired.interval()
        note = f"{points(100 * bounds.low)} to {points(100 * bounds.high)} points"
        found.append(("top-1 change", Cell(points(100 * paired.difference), note)))
    if results.labels:
        found.append(("signal to noise", comparison.signal_to_noise(results, variant)))
    return [
        *found,
        _ratio("faster", "slower", _speed(results, variant), milliseconds(variant.latency["median"])),
        _ratio("smaller", "larger", _smaller(results, variant), megabytes(variant.bytes)),
    ]


def say_headline(results: Results, variant: VariantResult) -> str:
    """Summarize the result in one sentence."""
    start = f"{variant.title} is {size_ratio(_smaller(results, variant))}, {pace(_speed(results, variant))}"
    if not results.labels:
        found = results.get(EmbeddingDrift).variants[variant.variant].cosine
        return f"{start}, and gives embeddings with a mean cosine of {cosine(found)} to float32's."
    total = len(results.images)
    same, images = total - len(results.changed(variant)), counted(total, "image")
    label = f"all {images}" if same == total else f"{same:,} of {images}"
    return f"{start}, and gives the same label as float32 on {label}."


def say_chance(results: Results, variant: VariantResult) -> str:
    """Say in plain sentences whether the top-1 differs; nothing where the classes are unknown."""
    if results.targets is None:
        return ""
    paired = _pair(results, variant)
    interval = paired.interval()
    bounds = f"between {points(100 * interval.low)} and {points(100 * interval.high)} points (95 %)"
    if not paired.lost and not paired.gained:
        return (
            f"Both are right on exactly the same of the {paired.total:,} images. On others like them the "
            f"difference of top-1 lies {bounds}."
        )
    counts = f"{paired.lost} right in float32 only, {paired.gained} in {variant.title} only"
    p = paired.p_value()
    verdict = "more than chance would give" if p < 0.05 else "no more than chance would give"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"
    return (
        f"The top-1 difference of {points(100 * paired.difference)} points is {verdict} "
        f"({counts}; McNemar's exact test, {shown}). On other such images it lies {bounds}."
    )


def _list_origin(source: Mapping[str, Any]) -> list[str]:
    """Say where the weights come from, as far as the source tells."""
    file = next((source[key] for key in ("checkpoint", "weights", "onnx") if key in source), "")
    parts = [f"file {file}"] if file else []
    texts = {
        "imported": "weights imported from",
        "trained_on": "trained on",
        "trained_from": "fine-tuned from",
    }
    return parts + [f"{text} {source[key]}" for key, text in texts.items() if key in source]


def _pair(results: Results, variant: VariantResult) -> Paired:
    return Paired.of(results.right(results.variants[0]), results.right(variant))


def _speed(results: Results, variant: VariantResult) -> float:
    """Return the speed-up over float32: ratio of the median latencies."""
    return results.variants[0].latency["median"] / max(variant.latency["median"], 1e-9)


def _smaller(results: Results, variant: VariantResult) -> float:
    """Return how many times smaller than float32's the file is."""
    return results.variants[0].bytes / max(variant.bytes, 1)


def _ratio(better: str, worse: str, ratio: float, note: str) -> tuple[str, Cell]:
    word, ratio = (better, ratio) if ratio >= 1 else (worse, 1 / ratio)
    return f"{word} than float32", Cell(f"{ratio:.2f}{TIMES}", note)


def _share(hits: int, total: int) -> Cell:
    return Cell(share(hits, total), share_interval(wilson(hits, total), total))


def _top1(results: Results, variant: VariantResult) -> Cell:
    return _share(int(results.right(variant).sum()), len(results.images))


def _latency(results: Results, variant: VariantResult) -> Cell:
    median, least = milliseconds(variant.latency["median"]), f"least {three_digits(variant.latency['min'])}"
    if variant is results.variants[0]:
        return Cell(median, least)
    return Cell(median, pace(_speed(results, variant)), least)


def _size(results: Results, variant: VariantResult) -> Cell:
    ratio = "" if variant is results.variants[0] else size_ratio(_smaller(results, variant))
    return Cell(megabytes(variant.bytes), ratio)
