"""One limit on one variant, decided by the 95 % interval of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from calibration.measure.drift import Drift
from calibration.measure.statistics import Interval, score_interval, wilson
from calibration.search import Budget
from export.measure.embeddings import EmbeddingDrift
from runtime.text import format_count

MOST_IMAGES = 1_000_000  # where the number of images that a limit takes is not counted any further
NEVER = f"it takes more than {MOST_IMAGES:,} images"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One limit on one variant, and what was measured."""

    variant: str
    limit: str  # the option: "--max-drift"
    bound: float
    found: float
    interval: Interval | None  # of `found`, 95 %; None where too few images give none
    status: Literal["met", "missed", "not judged"]
    text: str  # "0.12 of 0.5 points of top-1 lost"
    doubt: str = ""  # why it cannot be judged; empty where it can
    images_needed: int | None = None  # about how many images would decide it, where too few are the reason

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        found = asdict(self)
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        return {**found, "interval": bounds}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure with a limit.

    Attributes:
        limit: the option.
        bound: its value.
        found: what was measured.
        interval: of it, 95 %; None where too few images give none.
        images: how many were measured.
        lower: whether less is better.
        text: figure and limit in words.
        missed: the same where the limit is missed.
        between: what the interval is of, and its unit: "the drop of top-1 lies between {} points".
        shown: the limit in words: "0.5 points".
        expected: the interval that a number of images would give if all shares stay as they are.
        ideal: the interval that they would give if the figure is as good as it can be; None where nothing
            says what that is.
    """

    limit: str
    bound: float
    found: float
    interval: Interval | None
    images: int
    lower: bool = False
    text: str
    missed: str
    between: str
    shown: str
    expected: Callable[[float], Interval]
    ideal: Callable[[float], Interval] | None = None

    def meets(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly within the limit."""
        return interval.high <= self.bound if self.lower else interval.low >= self.bound

    def misses(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly beyond the limit."""
        return interval.low > self.bound if self.lower else interval.high < self.bound

    def judge(self, variant: str, doubt: str) -> Judged:
        """Decide the limit.

        Args:
            variant: on which it was measured.
            doubt: why the images cannot show that it is met, whatever their number; empty where they can.
        """
        status: Literal["met", "missed", "not judged"] = "not judged"
        needed, text = None, self.text
        if self.interval is not None and self.misses(self.interval):
            status, text, doubt = "missed", self.missed, ""
        elif doubt:
            pass
        elif self.interval is not None and self.meets(self.interval):
            status = "met"
        else:
            needed = self.needed()
            doubt = self._too_few(needed)
        return Judged(
            variant=variant,
            limit=self.limit,
            bound=self.bound,
            found=self.found,
            interval=self.interval,
            status=status,
            text=text,
            doubt=doubt,
            images_needed=needed,
        )

    def needed(self) -> int | None:
        """Return about how many images would decide the limit; None where a million would not.

        A figure within the limit is taken to stay as it is. One beyond it may be bad luck: then it is the
        number that would show a perfect figure, and, where there are as many already, the number that would
        show that the limit is missed.
        """
        kept = self.found <= self.bound if self.lower else self.found >= self.bound
        if self.interval is None:
            return None
        if kept:
            return self._fewest(lambda count: self.meets(self.expected(count)))
        if self.ideal is not None:
            ideal = self.ideal
            perfect = self._fewest(lambda count: self.meets(ideal(count)), start=1)
            if perfect is not None and perfect > self.images:
                return perfect
        return self._fewest(lambda count: self.misses(self.expected(count)))

    def _fewest(self, decided: Callable[[int], bool], start: int = 0) -> int | None:
        low, high = start or self.images, MOST_IMAGES
        if not decided(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decided(middle) else (middle, high)
        return high

    def _too_few(self, needed: int | None) -> str:
        images = format_count(self.images, "image")
        start = f"{images} cannot show a limit of {self.shown}"
        if self.interval is None:
            return f"{start}: one image gives no interval"
        takes = f"it takes about {needed:,} images" if needed is not None else NEVER
        return f"{start}: {self.between} (95 %); {takes}"


def figures_of(budget: Budget, drift: Drift, sqnr: Interval | None) -> list[Figure]:
    """Return the figures of a variant's logits that have a limit.

    Args:
        budget: the limits.
        drift: what was measured.
        sqnr: the interval of the SQNR in dB; None where too few images give none.
    """
    found = []
    if budget.max_drift is not None and drift.top1_drop is not None:
        found.append(_drop(budget.max_drift, drift.top1_drop, drift))
    if budget.min_agreement is not None:
        found.append(_agreement(budget.min_agreement, drift))
    if budget.min_sqnr is not None:
        found.append(
            Figure(
                limit="--min-sqnr",
                bound=budget.min_sqnr,
                found=drift.sqnr,
                interval=sqnr,
                images=drift.images,
                text=f"a signal-to-noise ratio of {drift.sqnr:.1f} dB (minimum: {budget.min_sqnr:g} dB)",
                missed=f"SQNR is {drift.sqnr:.1f} dB{_around(sqnr, 1)} (minimum: {budget.min_sqnr:g} dB)",
                between=_between("the signal-to-noise ratio", sqnr, 1, " dB"),
                shown=f"{budget.min_sqnr:g} dB",
                expected=_narrowed(drift.sqnr, sqnr, drift.images),
            )
        )
    return found


def cosine_figure(minimum: float, found: EmbeddingDrift) -> Figure:
    """Return the mean cosine of a variant's embeddings, with its limit."""
    interval = found.cosine_interval
    return Figure(
        limit="--min-cosine",
        bound=minimum,
        found=found.cosine,
        interval=interval,
        images=found.images,
        text=f"a mean cosine of {found.cosine:.4f} (minimum: {minimum:g})",
        missed=f"the mean cosine of the embeddings is {found.cosine:.4f}{_around(interval, 4)} "
        f"(minimum: {minimum:g})",
        between=_between("the mean cosine", interval, 4, ""),
        shown=f"{minimum:g}",
        expected=_narrowed(found.cosine, interval, found.images),
    )


def _drop(limit: float, found: float, drift: Drift) -> Figure:
    lost, gained = ((count or 0) / drift.images for count in (drift.lost, drift.gained))
    interval = drift.drop_interval

    def scaled(lost: float, gained: float) -> Callable[[float], Interval]:
        def bounds(images: float) -> Interval:
            between = score_interval(lost * images, gained * images, images)
            return Interval(-100 * between.high, -100 * between.low)

        return bounds

    gain = f" ({-found:.2f} gained)" if found < 0 else ""
    return Figure(
        limit="--max-drift",
        bound=limit,
        found=found,
        interval=interval,
        images=drift.images,
        lower=True,
        text=f"{'0' if found < 0 else f'{found:.2f}'} of {limit:g} points of top-1 lost{gain}",
        missed=f"top-1 falls by {found:.2f} points{_around(interval, 2)} (limit: {limit:g} points)",
        between=_between("the drop of top-1", interval, 2, " points"),
        shown=f"{limit:g} points",
        expected=scaled(lost, gained),
        ideal=scaled((lost + gained) / 2, (lost + gained) / 2),
    )


def _agreement(minimum: float, drift: Drift) -> Figure:
    interval = drift.agreement_interval

    def scaled(share: float) -> Callable[[float], Interval]:
        def bounds(images: float) -> Interval:
            found = wilson(round(share * images), round(images))
            return Interval(100 * found.low, 100 * found.high)

        return bounds

    return Figure(
        limit="--min-agreement",
        bound=minimum,
        found=drift.agreement,
        interval=interval,
        images=drift.images,
        text=f"the same label on {drift.agreement:.2f} % (minimum: {minimum:g} %)",
        missed=f"agreement is {drift.agreement:.2f} %{_around(interval, 2)} (minimum: {minimum:g} %)",
        between=_between("the share of same labels", interval, 2, " %"),
        shown=f"{minimum:g} % of same labels",
        expected=scaled(drift.agreement / 100),
        ideal=scaled(1.0),
    )


def _narrowed(found: float, interval: Interval | None, images: int) -> Callable[[float], Interval]:
    """Return how an interval narrows around its figure with the root of the number of images."""

    def bounds(count: float) -> Interval:
        if interval is None:
            return Interval(-math.inf, math.inf)
        narrower = math.sqrt(images / count)
        return Interval(found - (found - interval.low) * narrower, found + (interval.high - found) * narrower)

    return bounds


def _around(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    return f", 95 % interval {interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _between(what: str, interval: Interval | None, digits: int, unit: str) -> str:
    if interval is None:
        return ""
    return f"{what} lies between {interval.low:.{digits}f} and {interval.high:.{digits}f}{unit}"
