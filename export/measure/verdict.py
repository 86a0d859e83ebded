"""Verdict on the limits that were set: met, missed, not to be judged, or no limit at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from calibration.measure.drift import Drift
from calibration.measure.statistics import Interval
from calibration.search import Budget
from export.measure.embeddings import EmbeddingDrift
from export.measure.evidence import Doubt
from export.measure.limits import Judged, cosine_figure, figures_of

NAMES = {"float32": "float32", "float16": "FP16", "int8": "INT8"}  # of the variants, for people
Status = Literal["met", "missed", "not judged", "no limit"]


@dataclass(frozen=True)
class Verdict:
    """All limits of an export. One with a limit that is missed writes nothing."""

    limits: tuple[Judged, ...] = ()
    was_set: bool = False  # False: no limit was set

    @property
    def status(self) -> Status:
        if not self.limits:
            return "no limit"
        found = {each.status for each in self.limits}
        return "missed" if "missed" in found else "not judged" if "not judged" in found else "met"

    @property
    def text(self) -> str:
        """One line: "met: 0.12 of 0.5 points of top-1 lost"."""
        if not self.limits:
            return "no limit was judged: float32 is the only file" if self.was_set else "no limit was set"
        if self.status == "missed":
            return f"missed: {_listed([each for each in self.limits if each.status == 'missed'])}"
        kept = _listed([each for each in self.limits if not each.doubt])
        if self.status == "met":
            return f"met: {kept}"
        open_limits = [each for each in self.limits if each.doubt]
        shared = {each.doubt for each in open_limits}
        why = shared.pop() if len(shared) == 1 else _listed(open_limits, "doubt")
        return f"cannot be judged: {why}" + (f". Met: {kept}" if kept else "")

    @property
    def images_needed(self) -> int | None:
        """Return about how many images would decide every limit; None where another number would not."""
        found = [each.images_needed for each in self.limits if each.status == "not judged"]
        numbers = [each for each in found if each is not None]
        return max(numbers) if numbers and len(numbers) == len(found) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "status": self.status,
            "text": self.text,
            "images_needed": self.images_needed,
            "limits": [each.to_dict() for each in self.limits],
        }


def judge(
    budget: Mapping[str, Budget],
    drifts: Mapping[str, Drift],
    *,
    sqnr: Mapping[str, Interval | None] | None = None,
    min_cosine: float | None = None,
    embeddings: Mapping[str, EmbeddingDrift] | None = None,
    doubts: Iterable[Doubt] = (),
) -> Verdict:
    """Compare what was measured with the limits, each by the 95 % interval of its figure.

    Args:
        budget: limits on the logits, by variant, float32 included.
        drifts: of the logits, by variant other than float32.
        sqnr: interval of the SQNR in dB, by variant; None where one image gives none.
        min_cosine: limit on the embeddings.
        embeddings: drift of the embeddings, by variant.
        doubts: about the evidence; they name the limits that no number of such images can show.
    """
    open_limits = {name: each.sentence for each in reversed(tuple(doubts)) for name in each.limits}
    limits = [
        figure.judge(name, open_limits.get(figure.limit, ""))
        for name, drift in drifts.items()
        for figure in figures_of(budget[name], drift, (sqnr or {}).get(name))
    ]
    if min_cosine is not None:
        limits += [
            cosine_figure(min_cosine, found).judge(name, open_limits.get("--min-cosine", ""))
            for name, found in (embeddings or {}).items()
        ]
    was_set = min_cosine is not None or any(each.limits for each in budget.values())
    return Verdict(tuple(limits), was_set)


def _listed(limits: Sequence[Judged], field: Literal["text", "doubt"] = "text") -> str:
    """The limits in words, each variant named where there are several."""
    parts: dict[str, list[str]] = {}
    for each in limits:
        parts.setdefault(each.variant, []).append(getattr(each, field))
    separator, colon = (", ", "") if field == "text" else ("; ", ":")
    texts = {name: separator.join(dict.fromkeys(found)) for name, found in parts.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{NAMES.get(name, name)}{colon} {text}" for name, text in texts.items())
