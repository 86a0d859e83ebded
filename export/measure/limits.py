"""One limit on one variant, decided by the 95 % interval of its figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from calibration.measure.drift import Drift, SetDrift
from calibration.measure.statistics import Interval, score_interval, wilson_interval
from calibration.search import Budget
from runtime.text import format_count

MOST_IMAGES = 1_000_000  # the number of images that a limit takes is not counted further
NEVER = f"it takes more than {MOST_IMAGES:,} images"


@dataclass(frozen=True)
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

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        bounds = None if self.interval is None else [self.interval.low, self.interval.high]
        return {**asdict(self), "interval": bounds}


@dataclass(frozen=True)
class _Words:
    digits: int  # decimals of the figure
    unit: str  # behind the figure, with its space
    what: str  # the figure
    kept: str  # before figure and limit, where the limit is not missed
    missed: str  # before the figure, where the limit is missed
    of: str = ""  # behind the limit


_WORDS = {
    "--max-drift": _Words(2, " points", "the drop of {}", "", "{} falls by"),
    "--min-agreement": _Words(
        2, " %", "the share of same labels", "the same label on", "agreement is", " of same labels"
    ),
    "--min-sqnr": _Words(1, " dB", "the signal-to-noise ratio", "a signal-to-noise ratio of", "SQNR is"),
    "--min-cosine": _Words(
        4, "", "the mean cosine", "a mean cosine of", "the mean cosine of the embeddings is"
    ),
}


@dataclass(frozen=True)
class LimitedFigure:
    """A measured figure with a limit."""

    limit: str  # the option
    bound: float
    found: float
    interval: Interval | None  # of `found`, 95 %; None where too few images give none
    images: int
    expected: Callable[[float], Interval]  # of a number of images, if all shares stay as they are
    ideal: Callable[[float], Interval] | None = None  # if the figure is as good as it can be, where known
    accuracy: str = "top-1"  # what --max-drift limits the fall of

    @property
    def lower(self) -> bool:
        """True if less is better."""
        return self.limit == "--max-drift"

    def judge(self, variant: str, doubt: str) -> LimitResult:
        """Decide the limit; `doubt`, where not empty, says why no number of such images can show it."""
        status: Literal["met", "missed", "not judged"] = "not judged"
        needed, words = None, _WORDS[self.limit]
        number = f"{self.found:.{words.digits}f}"
        if self.lower:
            lost, gain = ("0", f" ({-self.found:.2f} gained)") if self.found < 0 else (number, "")
            text = f"{lost} of {self.bound:g} points of {self.accuracy} lost{gain}"
        else:
            text = f"{words.kept} {number}{words.unit} (minimum: {self.bound:g}{words.unit})"
        if self.interval is not None and self._misses(self.interval):
            status, doubt = "missed", ""
            kind = f"({'limit' if self.lower else 'minimum'}: {self.bound:g}{words.unit})"
            bounds = self._bounds(self.interval, "to")
            text = f"{words.missed.format(self.accuracy)} {number}{words.unit}, 95 % interval {bounds} {kind}"
        elif not doubt and self.interval is not None and self._meets(self.interval):
            status = "met"
        elif not doubt:
            needed = self._count_needed()
            doubt = self._say_too_few(needed)
        figure = self.limit, self.bound, self.found, self.interval
        return LimitResult(variant, *figure, status, text, doubt, needed)

    def _meets(self, interval: Interval) -> bool:
        return interval.high <= self.bound if self.lower else interval.low >= self.bound

    def _misses(self, interval: Interval) -> bool:
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
        if (ideal := self.ideal) is not None:
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
        words = _WORDS[self.limit]
        limit = f"{self.bound:g}{words.unit}{words.of}"
        start = f"{format_count(self.images, 'image')} cannot show a limit of {limit}"
        if self.interval is None:
            return f"{start}: one image gives no interval"
        takes = f"it takes about {needed:,} images" if needed is not None else NEVER
        bounds = self._bounds(self.interval, "and")
        what = words.what.format(self.accuracy)
        return f"{start}: {what} lies between {bounds}{words.unit} (95 %); {takes}"

    def _bounds(self, interval: Interval, word: str) -> str:
        digits = _WORDS[self.limit].digits
        return f"{interval.low:.{digits}f} {word} {interval.high:.{digits}f}"


def limit_logits(budget: Budget, drift: Drift, sqnr: Interval | None) -> list[LimitedFigure]:
    """Return the figures of a variant's logits that have a limit.

    `sqnr` is the interval of the SQNR in dB; None where too few images give none.
    """
    found, images = list[LimitedFigure](), drift.images
    if (most := budget.max_drift) is not None and isinstance(drift, SetDrift) and drift.drop is not None:
        expected = partial(_narrow, drift.drop, drift.drop_interval, images)
        figure = "--max-drift", most, drift.drop, drift.drop_interval, images
        found.append(LimitedFigure(*figure, expected, accuracy=drift.figure))
    elif most is not None and (drop := drift.top1_drop) is not None:
        lost, gained = ((count or 0) / images for count in (drift.lost, drift.gained))
        change = (lost + gained) / 2
        shares = partial(_drop_interval, lost, gained), partial(_drop_interval, change, change)
        found.append(LimitedFigure("--max-drift", most, drop, drift.drop_interval, images, *shares))
    if (least := budget.min_agreement) is not None:
        same, interval = drift.agreement, drift.agreement_interval
        shares = partial(_agreement_interval, same / 100), partial(_agreement_interval, 1.0)
        found.append(LimitedFigure("--min-agreement", least, same, interval, images, *shares))
    if (least := budget.min_sqnr) is not None:
        expected = partial(_narrow, drift.sqnr, sqnr, images)
        found.append(LimitedFigure("--min-sqnr", least, drift.sqnr, sqnr, images, expected))
    return found


def limit_cosine(minimum: float, cosine: float, interval: Interval | None, images: int) -> LimitedFigure:
    """Return the mean cosine of a variant's embeddings with its limit.

    `interval` is the 95 % interval of the mean; None for one image.
    """
    expected = partial(_narrow, cosine, interval, images)
    return LimitedFigure("--min-cosine", minimum, cosine, interval, images, expected)


def _drop_interval(lost: float, gained: float, images: float) -> Interval:
    """Return the interval of the drop in points, where these shares of the images are lost and gained."""
    difference = score_interval(lost * images, gained * images, images)
    return Interval(-100 * difference.high, -100 * difference.low)


def _agreement_interval(share: float, images: float) -> Interval:
    found = wilson_interval(round(share * images), round(images))
    return Interval(100 * found.low, 100 * found.high)


def _narrow(figure: float, interval: Interval | None, measured: int, images: float) -> Interval:
    """Return the interval of another number of images: it narrows with the root of that number."""
    if interval is None:
        return Interval(-math.inf, math.inf)
    factor = math.sqrt(measured / images)
    return Interval(figure - (figure - interval.low) * factor, figure + (interval.high - figure) * factor)
