"""Messages of a long run on the terminal: progress, and a summary at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..images.left_out import LeftOut, left_out_line
from ..results import Result
from ..text import printable
from .inputs import ALL_FILES

_SHOWN = 10  # classes and failures that the summary names


class Report:
    """Counts results, shows a progress line where standard error is a terminal, and sums up."""

    def __init__(self, total: int | None) -> None:
        self.left_out = LeftOut()
        self.failed = 0
        self.unsure = 0
        self._total = total
        self._done = 0
        self._skipped = 0
        self._classes: Counter[str] = Counter()
        self._failures: list[str] = []
        self._began = time.monotonic()
        self._shown = 0.0
        self._live = sys.stderr.isatty()

    @property
    def seen(self) -> int:
        """Images in this run and in the ones that it goes on from."""
        return self._done + self._skipped

    def skip(self) -> None:
        """Count an image that an earlier run has done."""
        self._skipped += 1

    def add(self, result: Result[Path]) -> None:
        self._done += 1
        if result.prediction is not None and result.prediction.label is None:
            self.unsure += 1
        elif result.prediction is not None:
            self._classes[str(result.prediction.label)] += 1
        else:
            self.failed += 1
            if len(self._failures) < _SHOWN:
                self._failures.append(f"{printable(str(result.image))}: {result.error}")
        if self._live and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            print(f"\r\x1b[K{self._line()}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the progress line away, before something else is printed."""
        if self._live and self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def summary(self) -> str:
        seconds = time.monotonic() - self._began
        lines = [
            f"{self._done:,} images in {seconds:.1f} s, {self._rate():.1f} a second, {self.failed:,} failed"
        ]
        if self.unsure:
            lines[0] += f", {self.unsure:,} unsure"
        if self._skipped:
            lines[0] += f"; {self._skipped:,} were done before"
        lines += [f"{count:9,}  {printable(label)}" for label, count in self._classes.most_common(_SHOWN)]
        lines += _and_more(len(self._classes) - _SHOWN, "classes")
        lines += [f"   failed  {failure}" for failure in self._failures]
        lines += _and_more(self.failed - len(self._failures), "failures, told in the output")
        lines += left_out_lines(self.left_out.counts)
        return "\n".join(lines)

    def _line(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        if self._total is None:
            return f"{self._done:,} images, {self._rate():.1f} a second{failed}"
        left = max(0, self._total - self._skipped - self._done)
        return (
            f"{self.seen:,} of {self._total:,} images, {self._rate():.1f} a second, "
            f"{_clock(left / max(self._rate(), 1e-9))} left{failed}"
        )

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._began, 1e-9)


def left_out_lines(counts: Mapping[str, int]) -> list[str]:
    """Return the line of a summary about files that were left out, if there are any.

    Args:
        counts: of a `LeftOut`.
    """
    line = left_out_line(counts)
    return [f"{line} ({ALL_FILES})"] if line else []


def _and_more(count: int, what: str) -> list[str]:
    return [f"      and  {count:,} more {what}"] if count > 0 else []


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
