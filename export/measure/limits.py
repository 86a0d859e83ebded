"""One limit on one variant, decided by the 95 % interval of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from calibration.measure.drift import Drift
from calibration.measure.statistics import Interval, score_interval, wilson
from calibration.search import Budget
from runtime.text import format_count

MOST_IMAGES = 1_000_000  # the number of images that a limit takes is not counted further
NEVER = f"it takes more than {MOST_IMAGES:,} images"


@dataclass(frozen=True, kw_only=True)
class LimitResult:
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

    @property
    def undecidable(self) -> bool:
        """True if it is open and no number of such images would decide it."""
        return self.status == "not judged" and self.interval is not None and self.images_needed is None

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        return {**asdict(self), "interval": bounds}


@dataclass(frozen=True, kw_only=True)
class LimitedFigure:
    """A measured figure with a limit."""

    limit: str  # the option
    bound: float
    found: float
    interval: Interval | None  # of `found`, 95 %; None where too few images give none
    images: int
    lower: bool = False  # whether less is better
    digits: int  # decimals of the figure in words
    unit: str  # behind the figure, with its space
    what: str  # the figure in words: "the drop of top-1"
    text: str  # figure and limit in words, where the limit is not missed
    missed: str  # the figure in words, where the limit is missed
    shown: str  # the limit in words: "0.5 points"
    expected: Callable[[float], Interval]  # of a number of images, if all shares stay as they are
    ideal: Callable[[float], Interval] | None = None  # if the figure is as good as it can be, where known

    def judge(self, variant: str, doubt: str) -> LimitResult:
        """Decide the limit.

        Args:
            variant: on which it was measured.
            doubt: why the images cannot show that it is met, whatever their number; empty where they can.
        """
        status: Literal["met", "missed", "not judged"] = "not judged"
        needed, text = None, self.text
        if self.interval is not None and self._misses(self.interval):
            status, doubt = "missed", ""
            kind = "limit" if self.lower else "minimum"
            bounds = self._bounds(self.interval, "to")
            text = f"{self.missed}, 95 % interval {bounds} ({kind}: {self.bound:g}{self.unit})"
        elif doubt:
            pass
        elif self.interval is not None and self._meets(self.interval):
            status = "met"
        else:
            needed = self._count_needed()
            doubt = self._say_too_few(needed)
        return LimitResult(
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

    def _meets(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly within the limit."""
        return interval.high <= self.bound if self.lower else interval.low >= self.bound

    def _misses(self, interval: Interval) -> bool:
        """Return whether an interval lies wholly beyond the limit."""
        return interval.low > self.bound if self.lower else interval.high < self.bound

    def _count_needed(self) -> int | None:
        """Return about how many images would decide the limit; None where a million would not.

        A figure within the limit is taken to stay as it is. One beyond it may be bad luck: then it is the
        number that would show a perfect figure, and, where there are as many already, the number that would
        show that the limit is missed.
        """
        if self.interval is None:
            return None
        if self.found <= self.bound if self.lower else self.found >= self.bound:
            return self._search_count(lambda count: self._meets(self.expected(count)), self.images)
        if self.ideal is not None:
            ideal = self.ideal
            perfect = self._search_count(lambda count: self._meets(ideal(count)), 1)
            if perfect is not None and perfect > self.images:
                return perfect
        return self._search_count(lambda count: self._misses(self.expected(count)), self.images)

    def _search_count(self, decides: Callable[[int], bool], low: int) -> int | None:
        """Return the lowest number of images above `low` that decides, by bisection."""
        high = MOST_IMAGES
        if not decides(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if decides(middle) else (middle, high)
        return high

    def _say_too_few(self, needed: int | None) -> str:
        start = f"{format_count(self.images, 'image')} cannot show a limit of {self.shown}"
        if self.interval is None:
            return f"{start}: one image gives no interval"
        takes = f"it takes about {needed:,} images" if needed is not None else NEVER
        bounds = self._bounds(self.interval, "and")
        return f"{start}: {self.what} lies between {bounds}{self.unit} (95 %); {takes}"

    def _bounds(self, interval: Interval, word: str) -> str:
        return f"{interval.low:.{self.digits}f} {word} {interval.high:.{self.digits}f}"


def limit_logits(budget: Budget, drift: Drift, sqnr: Interval | None) -> list[LimitedFigure]:
    """Return the figures of a variant's logits that have a limit.

    Args:
        budget: the limits.
        drift: what was measured.
        sqnr: the interval of the SQNR in dB; None where too few images give none.
    """
    found = []
    if budget.max_drift is not None and drift.top1_drop is not None:
        found.append(_limit_drop(budget.max_drift, drift.top1_drop, drift))
    if budget.min_agreement is not None:
        found.append(_limit_agreement(budget.min_agreement, drift))
    if budget.min_sqnr is not None:
        found.append(
            LimitedFigure(
                limit="--min-sqnr",
                bound=budget.min_sqnr,
                found=drift.sqnr,
                interval=sqnr,
                images=drift.images,
                digits=1,
                unit=" dB",
                what="the signal-to-noise ratio",
                text=f"a signal-to-noise ratio of {drift.sqnr:.1f} dB (minimum: {budget.min_sqnr:g} dB)",
                missed=f"SQNR is {drift.sqnr:.1f} dB",
                shown=f"{budget.min_sqnr:g} dB",
                expected=partial(_narrow, drift.sqnr, sqnr, drift.images),
            )
        )
    return found


def limit_cosine(minimum: float, cosine: float, interval: Interval | None, images: int) -> LimitedFigure:
    """Return the mean cosine of a variant's embeddings with its limit.

    Args:
        minimum: the limit.
        cosine: the mean.
        interval: 95 % interval of the mean; None for one image.
        images: how many were measured.
    """
    return LimitedFigure(
        limit="--min-cosine",
        bound=minimum,
        found=cosine,
        interval=interval,
        images=images,
        digits=4,
        unit="",
        what="the mean cosine",
        text=f"a mean cosine of {cosine:.4f} (minimum: {minimum:g})",
        missed=f"the mean cosine of the embeddings is {cosine:.4f}",
        shown=f"{minimum:g}",
        expected=partial(_narrow, cosine, interval, images),
    )


def _limit_drop(limit: float, drop: float, drift: Drift) -> LimitedFigure:
    lost, gained = ((count or 0) / drift.images for count in (drift.lost, drift.gained))
    change = (lost + gained) / 2
    gain = f" ({-drop:.2f} gained)" if drop < 0 else ""
    return LimitedFigure(
        limit="--max-drift",
        bound=limit,
        found=drop,
        interval=drift.drop_interval,
        images=drift.images,
        lower=True,
        digits=2,
        unit=" points",
        what="the drop of top-1",
        text=f"{'0' if drop < 0 else f'{drop:.2f}'} of {limit:g} points of top-1 lost{gain}",
        missed=f"top-1 falls by {drop:.2f} points",
        shown=f"{limit:g} points",
        expected=partial(_drop_interval, lost, gained),
        ideal=partial(_drop_interval, change, change),
    )


def _limit_agreement(minimum: float, drift: Drift) -> LimitedFigure:
    return LimitedFigure(
        limit="--min-agreement",
        bound=minimum,
        found=drift.agreement,
        interval=drift.agreement_interval,
        images=drift.images,
        digits=2,
        unit=" %",
        what="the share of same labels",
        text=f"the same label on {drift.agreement:.2f} % (minimum: {minimum:g} %)",
        missed=f"agreement is {drift.agreement:.2f} %",
        shown=f"{minimum:g} % of same labels",
        expected=partial(_agreement_interval, drift.agreement / 100),
        ideal=partial(_agreement_interval, 1.0),
    )


def _drop_interval(lost: float, gained: float, images: float) -> Interval:
    """Return the interval of the drop in points, where these shares of the images are lost and gained."""
    difference = score_interval(lost * images, gained * images, images)
    return Interval(-100 * difference.high, -100 * difference.low)


def _agreement_interval(share: float, images: float) -> Interval:
    found = wilson(round(share * images), round(images))
    return Interval(100 * found.low, 100 * found.high)


def _narrow(figure: float, interval: Interval | None, measured: int, images: float) -> Interval:
    """Return the interval of another number of images: it narrows with the root of that number."""
    if interval is None:
        return Interval(-math.inf, math.inf)
    factor = math.sqrt(measured / images)
    return Interval(figure - (figure - interval.low) * factor, figure + (interval.high - figure) * factor)
