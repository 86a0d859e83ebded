"""Numbers and names as text, the same in the terminal and on the page, where they are template filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibration.measure.statistics import MOST_DECIBELS, Interval, wilson_interval
from runtime.text import format_count

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
NAMES = {"float32": "float32", "float16": "FP16", "int8": "INT8"}  # of the variants, for people
MANY_IMAGES = 1000  # above which one image is less than a tenth of a point: two decimals
NAMES_SHOWN = 3


def percent(value: float | None, digits: int = 2) -> str:
    """Return a figure in per cent: "98.33 %"; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f} %"


def share(hits: int, total: int) -> str:
    """Return a share of some images in per cent, with as many decimals as they are worth."""
    return percent(100 * hits / total, _share_digits(total))


def share_interval(hits: int, total: int) -> str:
    """Return the 95 % interval of a share (Wilson) in per cent without the unit: "94.0–100.0"."""
    interval, digits = wilson_interval(hits, total), _share_digits(total)
    return f"{100 * interval.low:.{digits}f}{DASH}{100 * interval.high:.{digits}f}"


def _share_digits(total: int) -> int:
    return 2 if total > MANY_IMAGES else 1


def points(value: float) -> str:
    """Return percentage points with their sign; 0 for what rounds to zero."""
    text = f"{abs(value):.2f}"
    return "0" if text == "0.00" else (MINUS if value < 0 else "+") + text


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio: "39.0 dB"."""
    return "no noise" if value >= MOST_DECIBELS else f"{value:.1f} dB".replace("-", MINUS)


def decibel_interval(interval: Interval | None) -> str:
    """Return the interval of a signal-to-noise ratio without the unit: "38.2–39.8"; empty for none."""
    if interval is None or interval.low == interval.high:  # one image, or no noise
        return ""
    low, high = (f"{bound:.1f}".replace("-", MINUS) for bound in (interval.low, interval.high))
    return f"{low} to {high}" if interval.low < 0 else f"{low}{DASH}{high}"


def cosine(value: float) -> str:
    """Return a cosine with four decimals."""
    return f"{value:.4f}"


def milliseconds(time: float) -> str:
    """Return a time with three digits: "12.3 ms"."""
    return f"{three_digits(time)} ms"


def megabytes(size: int) -> str:
    """Return a number of bytes in units of 10⁶ bytes, with three digits: "3.61 MB"."""
    return f"{three_digits(size / 1e6)} MB"


def three_digits(value: float) -> str:
    """Return a number with as many decimals as make three digits, at most two."""
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def pace(ratio: float) -> str:
    """Return a speed-up in words: "1.83× faster"."""
    if 0.95 < ratio < 1.05:
        return "about as fast"
    return f"{ratio:.2f}{TIMES} faster" if ratio > 1 else f"{1 / ratio:.2f}{TIMES} slower"


def size_ratio(ratio: float) -> str:
    """Return how many times smaller a file is, in words: "3.9× smaller"."""
    return f"{ratio:.1f}{TIMES} smaller" if ratio >= 1 else f"{1 / ratio:.1f}{TIMES} larger"


def shorten(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are; report.json has them all."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def words(value: Any) -> str:
    """Return a JSON value as words: "width 64, image size 32 × 32"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        fields = [(key.replace("_", " "), each) for key, each in value.items() if each is not None]
        return ", ".join(f"{key} {words(each)}" for key, each in fields)
    if isinstance(value, (list, tuple)):
        return (f" {TIMES} " if all(isinstance(each, int) for each in value) else "/").join(map(words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


FILTERS: Mapping[str, Callable[..., str]] = {
    each.__name__: each
    for each in (
        *(percent, share, share_interval, decibels, decibel_interval, cosine),
        *(milliseconds, megabytes, three_digits, pace, size_ratio, words, format_count),
    )
}
