"""Messages of a long run on the terminal: progress, and a summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..command.progress import Cadence, Clock, clock_time
from ..images.find_images import SkippedFiles, describe_skipped
from ..results import Result
from ..text import format_count, make_printable
from .inputs import ALL_FILES

_SHOWN = 10  # classes and failures that the summary names
_LONGEST = 200  # characters of each


class Report:
    """Counts results, shows progress (in a log a line every 30 seconds), and sums up."""

    def __init__(
        self, total: int | None, *, clock: Clock = time.monotonic, cadence: Cadence | None = None
    ) -> None:
        self.left_out = SkippedFiles()
        self.failed = 0
        self.unsure = 0
        self._total = total
        self._done = 0
        self._skipped = 0
        self._classes: Counter[str] = Counter()
        self._failures: list[str] = []
        self._began = clock()
        self._clock = clock
        self._cadence = cadence or Cadence(clock)

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
                path = make_printable(str(result.image), longest=_LONGEST)
                self._failures.append(f"{path}: {make_printable(str(result.error), longest=_LONGEST)}")
        if self._cadence.due():
            self._cadence.print(self._line())

    def clear(self) -> None:
        """Take the progress line away, before something else is printed."""
        self._cadence.clear()

    def summary(self) -> str:
        seconds = self._clock() - self._began
        pace = f"{self._rate():.1f} a second, {self.failed:,} failed"
        lines = [f"{format_count(self._done, 'image')} in {seconds:.1f} s, {pace}"]
        if self.unsure:
            lines[0] += f", {self.unsure:,} unsure"
        if self._skipped:
            lines[0] += f"; {self._skipped:,} were done before"
        lines += [
            f"{count:9,}  {make_printable(label, longest=_LONGEST)}"
            for label, count in self._classes.most_common(_SHOWN)
        ]
        lines += and_more(len(self._classes) - _SHOWN, "class", "classes")
        lines += [f"   failed  {failure}" for failure in self._failures]
        lines += and_more(self.failed - len(self._failures), "failure", told=", told in the output")
        lines += left_out_lines(self.left_out.counts)
        return "\n".join(lines)

    def _line(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        if self._total is None:
            return f"{format_count(self._done, 'image')}, {self._rate():.1f} a second{failed}"
        left = max(0, self._total - self._skipped - self._done)
        return (
            f"{self.seen:,} of {format_count(self._total, 'image')}, {self._rate():.1f} a second, "
            f"{clock_time(left / max(self._rate(), 1e-9))} left{failed}"
        )

    def _rate(self) -> float:
        return self._done / max(self._clock() - self._began, 1e-9)


def left_out_lines(counts: Mapping[str, int]) -> list[str]:
    """Return the line of a summary about files that were left out, if there are any.

    Args:
        counts: of a `SkippedFiles`.
    """
    line = describe_skipped(counts)
    return [f"{line} ({ALL_FILES})"] if line else []


def and_more(count: int, one: str, several: str | None = None, *, told: str = "") -> list[str]:
    """Return a line for what a summary does not name, or none.

    Args:
        count: how many there are.
        one: the noun for one.
        several: the noun for more; None for `one` with an s.
        told: where they are named.
    """
    return (
        [f"      and  {format_count(count, f'more {one}', several and f'more {several}')}{told}"]
        if count > 0
        else []
    )
