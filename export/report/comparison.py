"""Each variant beside float32: labels, logits, latency and size, with what each figure is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.measure.drift import Drift, SetDrift, measure_drift
from calibration.measure.statistics import Interval, Paired, sqnr_interval
from export.measure.inference import Run
from export.report import number_formats as show
from export.report.embedding_drift import EmbeddingDrift
from export.report.section import Results, Section, VariantResult
from runtime.model_file.artifact import FILE_NAMES
from runtime.text import format_count

Tile = tuple[str, str, str]  # what it is, the figure, and in small its 95 % interval or what it stands for


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
        exact, truth = run.logits["float32"], run.truth
        logits = {each.variant: run.logits[each.variant] for each in run.variants[1:]}
        return cls(
            drifts={name: measure_drift(exact, rows, *truth) for name, rows in logits.items()},
            sqnr={name: sqnr_interval(exact, rows) for name, rows in logits.items()},
        )

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the drift of a variant."""
        return {"drift": self.drifts[variant].to_dict()} if variant in self.drifts else {}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return top-1, or mAP and F1, and drift, in the fields of each model."""
        models = {}
        for each in results.variants:
            models[each.variant] = {**results.measure_accuracy(each), **self.metadata(each.variant)}
        return {"models": models}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the table, one row per variant, and how it was measured."""
        accuracy = "top-1" if results.thresholds is None else "mAP"
        header = ("", accuracy, "agreement", "SQNR", "latency", "size", "file")
        rows = [header, *(self._row(results, each, out) for each in results.variants)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        images = format_count(results.evaluation["images"], "image")
        return [
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            f"measured on {images} of {results.evaluation['source']} ({results.evaluation['chosen']})",
            f"latency: median of one image, one thread, {results.environment['cpu']}",
        ]

    def _row(self, results: Results, each: VariantResult, out: Path) -> tuple[str, ...]:
        drift = self.drifts.get(each.variant)
        return (
            each.variant,
            show.percent(next(iter(results.measure_accuracy(each).values()), None)),
            show.percent(None if drift is None else drift.agreement),
            "-" if drift is None else show.decibels(drift.sqnr),
            show.milliseconds(each.latency["median"]),
            show.megabytes(each.bytes),
            str(out / each.file),
        )

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the accuracy by variant, and the bars of latency and size: name, length, text, CSS class."""
        times, sizes = [], []
        for each in results.variants:
            ms, size = each.latency["median"], each.bytes
            times.append((each.title, ms, show.milliseconds(ms), each.variant))
            sizes.append((each.title, size, show.megabytes(size), each.variant))
        accuracy = [results.measure_accuracy(each) for each in results.variants]
        return {"times": times, "sizes": sizes, "accuracy": accuracy}


@dataclass(frozen=True)
class Headlines(Section):
    """Sentences and tiles that compare each variant with float32, and the origin of the model."""

    template = "headlines.j2"

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the sentences and the tiles by variant, and where the weights come from."""
        say = {"headline": say_headline, "chance": say_chance, "tiles": make_comparison_tiles}
        others = results.variants[1:]
        variants = [{name: make(results, each) for name, make in say.items()} for each in others]
        for_npu = any(each.file == FILE_NAMES["npu"] for each in others)
        return {"variants": variants, "origin": _list_origin(results.source), "for_npu": for_npu}


def make_comparison_tiles(results: Results, variant: VariantResult) -> list[Tile]:
    """Return the four or five figures that matter, for a variant other than float32."""
    comparison, tiles, total = results.get(Comparison), list[Tile](), len(results.images)
    if results.labels:
        same = results.count_same(variant)
        tiles.append(("same label", show.share(same, total), show.share_interval(same, total)))
    else:
        each = results.get(EmbeddingDrift).variants[variant.variant]
        tiles.append(("mean cosine", show.cosine(each.cosine), f"worst {show.cosine(each.worst_cosine)}"))
    drift = comparison.drifts.get(variant.variant)
    if isinstance(drift, SetDrift) and drift.drop is not None:
        tiles.append(("mAP change", show.points(-drift.drop), _describe_bounds(drift, "to")))
    elif results.targets is not None and not results.images.several:
        paired = _pair(results, variant)
        tiles.append(("top-1 change", show.points(100 * paired.difference), _bounds(paired, "to")))
    if results.labels:
        sqnr, interval = comparison.drifts[variant.variant].sqnr, comparison.sqnr[variant.variant]
        tiles.append(("signal to noise", show.decibels(sqnr), show.decibel_interval(interval)))
    time, size = show.milliseconds(variant.latency["median"]), show.megabytes(variant.bytes)
    tiles.append(_make_ratio("faster", "slower", results.speedup(variant), time))
    return [*tiles, _make_ratio("smaller", "larger", results.compression(variant), size)]


def _make_ratio(better: str, worse: str, ratio: float, note: str) -> Tile:
    word, ratio = (better, ratio) if ratio >= 1 else (worse, 1 / ratio)
    return f"{word} than float32", f"{ratio:.2f}{show.TIMES}", note


def say_headline(results: Results, variant: VariantResult) -> str:
    """Summarize the result in one sentence."""
    size, speed = show.size_ratio(results.compression(variant)), show.pace(results.speedup(variant))
    start = f"{variant.title} is {size}, {speed}, and"
    if not results.labels:
        found = results.get(EmbeddingDrift).variants[variant.variant].cosine
        return f"{start} gives embeddings with a mean cosine of {show.cosine(found)} to float32's."
    same, total = results.count_same(variant), len(results.images)
    images = format_count(total, "image")
    label = f"all {images}" if same == total else f"{same:,} of {images}"
    noun = "label" if results.thresholds is None else "labels"
    return f"{start} gives the same {noun} as float32 on {label}."


def say_chance(results: Results, variant: VariantResult) -> str:
    """Say in plain sentences whether the top-1 differs; nothing where the classes are unknown."""
    drift = results.get(Comparison).drifts.get(variant.variant)
    if isinstance(drift, SetDrift) and drift.drop is not None:
        change, bounds = show.points(-drift.drop), _describe_bounds(drift, "and")
        return f"mAP changes by {change} points. On other such images it lies between {bounds} (95 %)."
    if results.targets is None or results.images.several:
        return ""
    paired = _pair(results, variant)
    bounds = f"between {_bounds(paired, 'and')} (95 %)"
    if not paired.lost and not paired.gained:
        return (
            f"Both are right on exactly the same of the {paired.total:,} images. On others like them the "
            f"difference of top-1 lies {bounds}."
        )
    counts = f"{paired.lost} right in float32 only, {paired.gained} in {variant.title} only"
    p = paired.p_value()
    verdict = f"{'' if p < 0.05 else 'no '}more than chance would give"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"
    return (
        f"The top-1 difference of {show.points(100 * paired.difference)} points is {verdict} "
        f"({counts}; McNemar's exact test, {shown}). On other such images it lies {bounds}."
    )


def _describe_bounds(drift: Drift, word: str) -> str:
    interval = drift.drop_interval
    assert interval is not None  # where the drop is known
    return f"{show.points(-interval.high)} {word} {show.points(-interval.low)} points"


def _bounds(paired: Paired, word: str) -> str:
    interval = paired.interval()
    return f"{show.points(100 * interval.low)} {word} {show.points(100 * interval.high)} points"


def _pair(results: Results, variant: VariantResult) -> Paired:
    return Paired.of(results.mark_right(results.variants[0]), results.mark_right(variant))


def _list_origin(source: Mapping[str, Any]) -> list[str]:
    """Say where the weights come from, as far as the source tells."""
    texts = {
        **dict.fromkeys(("checkpoint", "weights", "onnx"), "file"),
        "imported": "weights imported from",
        "downloaded_from": "downloaded from",
        "trained_on": "trained on",
        "trained_from": "fine-tuned from",
    }
    return [f"{text} {source[key]}" for key, text in texts.items() if key in source]
