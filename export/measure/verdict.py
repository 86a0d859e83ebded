"""Verdict on the limits that were set: met, or not to be judged, or no limit at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from calibration.measure.drift import Drift
from calibration.search import Budget
from export.measure.embeddings import EmbeddingDrift
from export.measure.evidence import Doubt

NAMES = {"float32": "float32", "float16": "FP16", "int8": "INT8"}  # of the variants, for people
Status = Literal["met", "not judged", "no limit"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One limit on one variant, and what was measured."""

    variant: str
    limit: str  # the option: "--max-drift"
    bound: float
    found: float
    text: str  # "0.12 of 0.5 points of top-1 lost"
    doubt: str = ""  # why it cannot be judged; empty where it is met

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {**asdict(self), "met": None if self.doubt else True}


@dataclass(frozen=True)
class Verdict:
    """All limits of an export. One that is not met is none: such an export writes nothing."""

    limits: tuple[Judged, ...] = ()
    was_set: bool = False  # False: no limit was set

    @property
    def status(self) -> Status:
        if not self.limits:
            return "no limit"
        return "not judged" if any(each.doubt for each in self.limits) else "met"

    @property
    def text(self) -> str:
        """One line: "met: 0.12 of 0.5 points of top-1 lost"."""
        if not self.limits:
            return "no limit was judged: float32 is the only file" if self.was_set else "no limit was set"
        kept = _listed([each for each in self.limits if not each.doubt])
        if self.status == "met":
            return f"met: {kept}"
        why = "; ".join(dict.fromkeys(each.doubt for each in self.limits if each.doubt))
        return f"cannot be judged: {why}" + (f". Met: {kept}" if kept else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "status": self.status,
            "text": self.text,
            "limits": [each.to_dict() for each in self.limits],
        }


def judge(
    budget: Mapping[str, Budget],
    drifts: Mapping[str, Drift],
    *,
    min_cosine: float | None = None,
    embeddings: Mapping[str, EmbeddingDrift] | None = None,
    doubts: Iterable[Doubt] = (),
) -> Verdict:
    """Compare what was measured with the limits, which are known to be kept as far as figures go.

    Args:
        budget: limits on the logits, by variant, float32 included.
        drifts: of the logits, by variant other than float32.
        min_cosine: limit on the embeddings.
        embeddings: drift of the embeddings, by variant.
        doubts: about the evidence; they name the limits that cannot be judged.
    """
    open_limits = {name: each.sentence for each in reversed(tuple(doubts)) for name in each.limits}
    limits: list[Judged] = []
    for name, drift in drifts.items():
        limits += _of_logits(name, budget[name], drift, open_limits)
    for name, found in (embeddings or {}).items():
        if min_cosine is not None:
            text = f"a mean cosine of {found.cosine:.4f} (minimum: {min_cosine:g})"
            limits.append(
                Judged(variant=name, limit="--min-cosine", bound=min_cosine, found=found.cosine, text=text)
            )
    was_set = min_cosine is not None or any(each.limits for each in budget.values())
    return Verdict(tuple(limits), was_set)


def _of_logits(name: str, budget: Budget, drift: Drift, doubts: Mapping[str, str]) -> list[Judged]:
    found = []
    if budget.max_drift is not None and drift.top1_drop is not None:
        found.append(
            Judged(
                variant=name,
                limit="--max-drift",
                bound=budget.max_drift,
                found=drift.top1_drop,
                text=_points(drift.top1_drop, budget.max_drift),
                doubt=doubts.get("max_drift", ""),
            )
        )
    if budget.min_agreement is not None:
        found.append(
            Judged(
                variant=name,
                limit="--min-agreement",
                bound=budget.min_agreement,
                found=drift.agreement,
                text=f"the same label on {drift.agreement:.2f} % (minimum: {budget.min_agreement:g} %)",
                doubt=doubts.get("min_agreement", ""),
            )
        )
    if budget.min_sqnr is not None:
        text = f"a signal-to-noise ratio of {drift.sqnr:.1f} dB (minimum: {budget.min_sqnr:g} dB)"
        found.append(
            Judged(variant=name, limit="--min-sqnr", bound=budget.min_sqnr, found=drift.sqnr, text=text)
        )
    return found


def _points(lost: float, limit: float) -> str:
    if lost < 0:
        return f"0 of {limit:g} points of top-1 lost ({-lost:.2f} gained)"
    return f"{lost:.2f} of {limit:g} points of top-1 lost"


def _listed(limits: Sequence[Judged]) -> str:
    """The limits in words, each variant named where there are several."""
    names = dict.fromkeys(each.variant for each in limits)
    parts = {name: ", ".join(each.text for each in limits if each.variant == name) for name in names}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return "; ".join(f"{NAMES.get(name, name)} {text}" for name, text in parts.items())
