"""Conclusion of an export: verdict on its limits, warnings, what to do now, and how to use the file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calibration.measure.drift import Drift
from calibration.measure.statistics import Interval
from calibration.search import Budget
from export.measure.inference import Run
from export.measure.limits import LimitResult, limit_cosine, limit_logits
from export.report.comparison import Comparison
from export.report.embedding_drift import EmbeddingDrift, EmbeddingFigures
from export.report.evidence import Evidence, EvidenceWarning
from export.report.number_formats import NAMES, shorten
from export.report.section import Results, Section, VariantResult
from runtime.model_file.artifact import MAX_BYTES
from runtime.model_file.integrity import DATA_SUFFIX
from runtime.text import format_count

Status = Literal["missed", "not judged", "met", "no limit"]
STYLES: Mapping[Status, str] = {  # CSS classes by status, worst first
    "missed": "unjudged", "not judged": "unjudged", "met": "met", "no limit": "unset",
}  # fmt: skip
# The variant to ship, in the order of `choose_model_file` of the runtime.
PREFERENCE = ("int8", "float32", "float16")
PHOTO = "photo.jpg"
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Conclusion(Section):
    """Verdict on the limits, warnings, and the next step. A limit that is missed stops the export."""

    limits: tuple[LimitResult, ...] = ()
    was_set: bool = False  # False: no limit was set
    template = "conclusion.j2"

    @classmethod
    def measure(cls, run: Run) -> Conclusion:
        """Judge each variant by the limits of the options; a merged one may have limits of its own."""
        comparison, embeddings = run.once(Comparison.measure), run.once(EmbeddingDrift.measure)
        options = run.options
        budgets: dict[str, Budget] = {
            each.variant: (options.merge_budget if each.merges else None) or options.budget
            for each in run.variants
        }
        return judge_limits(
            budgets,
            comparison.drifts,
            sqnr=comparison.sqnr,
            min_cosine=options.min_cosine,
            embeddings={} if embeddings is None else embeddings.variants,
            warnings=run.once(Evidence.measure).warnings,
        )

    @property
    def status(self) -> Status:
        """The worst status of a limit."""
        found: set[Status] = {"no limit", *(each.status for each in self.limits)}
        return next(status for status in STYLES if status in found)

    @property
    def text(self) -> str:
        """One line: "met: 0.12 of 0.5 points of top-1 lost"."""
        if not self.limits:
            return "no limit was judged: float32 is the only file" if self.was_set else "no limit was set"
        if self.status == "missed":
            return f"missed: {_join([each for each in self.limits if each.status == 'missed'])}"
        kept = _join([each for each in self.limits if not each.doubt])
        if self.status == "met":
            return f"met: {kept}"
        open_limits = [each for each in self.limits if each.doubt]
        shared = {each.doubt for each in open_limits}
        why = shared.pop() if len(shared) == 1 else _join(open_limits, "doubt")
        return f"cannot be judged: {why}" + (f". Met: {kept}" if kept else "")

    @property
    def _undecided(self) -> list[LimitResult]:
        return [each for each in self.limits if each.status == "not judged"]

    @property
    def images_needed(self) -> int | None:
        """About how many images would decide every limit; None where another number would not."""
        found = [each.images_needed for each in self._undecided]
        return max((each or 0 for each in found), default=None) if None not in found else None

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the verdict."""
        limits = [each.to_dict() for each in self.limits]
        verdict = {"status": self.status, "text": self.text, "images_needed": self.images_needed}
        return {"verdict": {**verdict, "limits": limits}}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return verdict, warnings and next step; the changed images where the verdict is open."""
        return [
            f"limits: {self.text}",
            *(_list_changed(results) if self.status == "not judged" else ()),
            *(f"warning: {sentence}" for sentence in self.other_warnings(results)),
            f"next: {self.next_step(results, f'{out}{os.sep}')}",
        ]

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the same for the head of the page, and the name of the model."""
        source = results.source
        return {
            "model": str(source.get("name") or source.get("checkpoint") or "model"),
            "style": STYLES[self.status],
            "verdict": self.text,
            "next_step": self.next_step(results),
            "warnings": self.other_warnings(results),
        }

    def other_warnings(self, results: Results) -> list[str]:
        """Return the warnings that the verdict does not say already."""
        doubts = {each.doubt for each in self.limits}
        return [each for each in results.get(Evidence).sentences if each not in doubts]

    def next_step(self, results: Results, folder: str = "") -> str:
        """Say what to do now, in one line; `folder`, with its separator, stands before the file's name."""
        status, ship = self.status, f"ship {folder}{choose_variant(results).file}"
        if status == "not judged":
            return self._say_what_is_missing(results)
        if self.other_warnings(results):
            return f"read the warnings; if none matters to you, {ship}"
        if status == "met":
            return ship
        if len(results.variants) == 1:
            return f"{ship}, or add --quantize --calibration IMAGES for a smaller and faster file"
        limit = "--max-drift POINTS" if results.targets is not None else "--min-agreement PERCENT"
        limit = limit if results.labels else "--min-cosine COSINE"
        return f"{ship} if this drift is small enough for you; {limit} makes the export decide it"

    def _say_what_is_missing(self, results: Results) -> str:
        shown = [each for each in self._undecided if each.doubt not in results.get(Evidence).sentences]
        if self.images_needed is not None:
            top1 = any(each.limit == "--max-drift" for each in self._undecided)
            known = " with known classes" if top1 else ""
            count = _round_up(max(self.images_needed - results.evaluation["images"], 1))
            more = format_count(count, "more image")
            step = f"bring about {more}{known} to measure on (--evaluate), and export again"
        elif any(each.interval is not None and each.images_needed is None for each in shown):
            step = "set a wider limit, which some number of images can show"
        else:
            step = "measure on images that can show it (--evaluate IMAGES), and export again"
        changed = [
            f"{format_count(count, 'image')} that {each.title} labels otherwise"
            for each in results.variants[1:]
            if (count := len(results.find_changed(each)))
        ]
        return step + (f"; until then look at the {' and the '.join(changed)}" if changed else "")


def judge_limits(
    budgets: Mapping[str, Budget],
    drifts: Mapping[str, Drift],
    *,
    sqnr: Mapping[str, Interval | None] = NOTHING,
    min_cosine: float | None = None,
    embeddings: Mapping[str, EmbeddingFigures] = NOTHING,
    warnings: Iterable[EvidenceWarning] = (),
) -> Conclusion:
    """Compare what was measured, by variant, with the limits, each by the 95 % interval of its figure.

    The warnings about the evidence name the limits that no number of such images can show.
    """
    open_limits = {name: each.sentence for each in reversed(tuple(warnings)) for name in each.limits}
    figures = [
        (name, figure)
        for name, drift in drifts.items()
        for figure in limit_logits(budgets[name], drift, sqnr.get(name))
    ]
    if min_cosine is not None:
        figures += [
            (name, limit_cosine(min_cosine, each.cosine, each.cosine_interval, each.images))
            for name, each in embeddings.items()
        ]
    limits = tuple(figure.judge(name, open_limits.get(figure.limit, "")) for name, figure in figures)
    return Conclusion(limits, min_cosine is not None or any(each.limits for each in budgets.values()))


def _join(limits: Sequence[LimitResult], field: Literal["text", "doubt"] = "text") -> str:
    """Return the limits in words, each variant with its name where there are several."""
    parts: dict[str, list[str]] = {}
    for each in limits:
        parts.setdefault(each.variant, []).append(getattr(each, field))
    separator, colon = (", ", "") if field == "text" else ("; ", ":")
    texts = {name: separator.join(dict.fromkeys(found)) for name, found in parts.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{NAMES[name]}{colon} {text}" for name, text in texts.items())


def _round_up(count: int) -> int:
    """Round a number of images up to two digits."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return math.ceil(count / unit) * unit


def _list_changed(results: Results) -> list[str]:
    lines = []
    for each in results.variants[1:]:
        before, after = results.variants[0].answers[0], each.answers[0]
        names = [
            f"{results.images.public_name(row)} ({results.name(before[row])} → {results.name(after[row])})"
            for row in results.find_changed(each).tolist()
        ]
        if names:
            lines.append(f"changed by {each.variant}: {format_count(len(names), 'image')}: {shorten(names)}")
    return lines


@dataclass(frozen=True)
class Usage(Section):
    """Lines that use the exported file, as they stand, in its folder."""

    template = "usage.j2"

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the file, the lines, and the name of a file that must lie beside it, else empty."""
        chosen = choose_variant(results)
        file = chosen.file
        name, make, call, rest = "Classifier", "classify", f'classify("{PHOTO}").label', ""
        if results.thresholds is not None:
            call = f'classify("{PHOTO}").labels'
        if not results.labels:
            name, make, call, rest = "Embedder", "embed", f'embed("{PHOTO}")', " --embeddings embeddings.npy"
        return {
            "file": file,
            "photo": PHOTO,
            "beside": f"{file}.*{DATA_SUFFIX}" if chosen.bytes > MAX_BYTES else "",
            "python": f'from runtime import {name}\n{make} = {name}("{file}")\nprint({call})',
            "shell": f"python -m runtime {file} {PHOTO}{rest}",
        }


def choose_variant(results: Results) -> VariantResult:
    """Return the variant that the runtime takes from the folder of an export."""
    return min(results.variants, key=lambda each: PREFERENCE.index(each.variant))
