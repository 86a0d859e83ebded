"""Counts of a run for labels, embeddings and clusters, its model (--verbose), progress and summary."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..command.line import PACKAGE, print_error
from ..command.progress import Cadence, Clock, format_duration
from ..images.find_images import SkippedFiles, describe_skipped
from ..placement import describe_placement
from ..text import format_count, make_printable

if TYPE_CHECKING:
    from ..load_model import ModelInfo

ALL_FILES = "--all-files tries each as an image"
_SHOWN = 10  # labels and failures that a summary names
_LONGEST = 200  # characters of each
_REASONS = 50  # that are counted one by one


@dataclass
class Tally:
    """Counts of a run, which may have a billion images, or of one chunk; the model's labels bound it."""

    images: int = 0
    labels: Counter[str] = field(default_factory=Counter)  # an image may have several
    labeled: int = 0  # images with a label
    reasons: Counter[str] = field(default_factory=Counter)  # of failures, without the numbers of one image
    failures: list[str] = field(default_factory=list)  # the first ten: path and reason, safe to print

    @property
    def failed(self) -> int:
        """Images that could not be read."""
        return self.reasons.total()

    @property
    def unsure(self) -> int:
        """Images that were read and have no label."""
        return self.images - self.failed - self.labeled

    def add(
        self, path: object, *, error: str | None = None, label: str | None = None, others: Iterable[str] = ()
    ) -> None:
        """Count one image: its label where it has one, with its `others`, or why it failed."""
        self.images += 1
        if error is not None:
            self._count_reason(re.sub(r"\d[\d,]*", "N", error), 1)
            if len(self.failures) < _SHOWN:
                self.failures.append(f"{_shorten(str(path))}: {_shorten(error)}")
        elif label is not None:
            self.labeled += 1
            self.labels.update((label, *others))

    def merge(self, other: Tally) -> None:
        """Add the counts of another chunk."""
        self.images += other.images
        self.labels += other.labels
        self.labeled += other.labeled
        self.failures += other.failures[: _SHOWN - len(self.failures)]
        for reason, count in other.reasons.items():
            self._count_reason(reason, count)

    def list_failures(self, where: str) -> list[str]:
        """Return one line per failure for a summary, and one for the others, which `where` lists."""
        lines = [f"   failed  {failure}" for failure in self.failures]
        more = self.failed - len(self.failures)
        return lines + count_others(more, "failure", f", listed in {where}")

    def _count_reason(self, reason: str, count: int) -> None:
        is_new = reason not in self.reasons and len(self.reasons) >= _REASONS
        self.reasons["other reasons" if is_new else reason] += count


class Report:
    """Count a run, show its progress (in a log one line every 30 seconds), and sum up.

    `total` is of the images of the run and of those that it continues; None where they were not counted.
    """

    def __init__(
        self, total: int | None = None, *, clock: Clock = time.monotonic, cadence: Cadence | None = None
    ) -> None:
        self.tally = Tally()
        self.left_out = SkippedFiles()
        self.skipped = 0  # images that an earlier run has done
        self._total = total
        self.no_label = "unsure"  # what an image without a label is
        self._clock, self._began = clock, clock()
        self._first_part: float | None = None  # seconds until the first part of a cluster run was written
        self._cadence = cadence or Cadence(clock)

    @property
    def found(self) -> int:
        """Images of this run and of those that it continues."""
        return self.tally.images + self.skipped

    def add(
        self, path: object, *, error: str | None = None, label: str | None = None, others: Iterable[str] = ()
    ) -> None:
        """Count one image as `Tally.add` does, and show progress."""
        self.tally.add(path, error=error, label=label, others=others)
        self._show()

    def merge(self, tally: Tally) -> None:
        """Count one part of a cluster run, and show progress."""
        self.tally.merge(tally)
        self._first_part = self._first_part or self._clock() - self._began
        self._show()

    def clear(self) -> None:
        """Remove the progress line before something else is printed."""
        self._cadence.clear()

    def end(self, code: int, message: str = "") -> int:
        """Print the summary, and a message if there is one; return the exit code."""
        self.clear()
        print(self.summary(), file=sys.stderr)
        return print_error(PACKAGE, message, code) if message else code

    def summary(self) -> str:
        """Return all counts in lines: of one machine each failure by its path, of a cluster by its reason."""
        tally = self.tally
        done = f"{format_count(tally.images, 'image')} in {self._clock() - self._began:.1f} s"
        if self._first_part is not None:
            done += f" (the first part after {self._first_part:.1f} s)"
        done += f", {self._rate():.1f} per second, {tally.failed:,} failed"
        if tally.unsure:
            done += f", {tally.unsure:,} {self.no_label}"
        if self.skipped:
            done += f"; {self.skipped:,} were done before"
        if self._first_part is None:
            failures = tally.list_failures("the output")
        else:
            failures = _list_counts(tally.reasons, "reason", "failed: ")
        labels = _list_counts(tally.labels, "label")
        return "\n".join([done, *labels, *failures, *describe_left_out(self.left_out.counts)])

    def _show(self) -> None:
        if not self._cadence.due():
            return
        failed = f", {self.tally.failed:,} failed" if self.tally.failed else ""
        if self._total is None:
            line = f"{format_count(self.tally.images, 'image')}, {self._rate():.1f} per second"
        else:
            left = format_duration(max(0, self._total - self.found) / max(self._rate(), 1e-9))
            done = f"{self.found:,} of {format_count(self._total, 'image')}"
            line = f"{done}, {self._rate():.1f} per second, {left} left"
        self._cadence.print(line + failed)

    def _rate(self) -> float:
        return self.tally.images / max(self._clock() - self._began, 1e-9)


def print_model(info: ModelInfo) -> None:
    """Print the model, the device, and where the nodes run to standard error."""
    from ..onnx_runtime import onnxruntime

    threads = format_count(info.threads, "thread")
    for line in (
        f"model: {info.path} ({info.variant}, {info.producer}, SHA-256 {info.sha256})",
        f"device: {info.device}, {threads} per image, onnxruntime {onnxruntime.__version__}",
        f"placement: {describe_placement(info.placement)}",
    ):
        print(make_printable(line), file=sys.stderr)


def describe_left_out(counts: Mapping[str, int]) -> list[str]:
    """Return the line of a summary about files that were left out, if there are any."""
    line = describe_skipped(counts)
    return [f"{line} ({ALL_FILES})"] if line else []


def _list_counts(counts: Counter[str], noun: str, prefix: str = "") -> list[str]:
    lines = [f"{count:9,}  {prefix}{_shorten(name)}" for name, count in counts.most_common(_SHOWN)]
    return lines + count_others(len(counts) - _SHOWN, noun)


def count_others(count: int, noun: str, where: str = "") -> list[str]:
    """Return the line of a summary about what it does not name, and what does, if there is anything."""
    return [f"      and  {format_count(count, f'more {noun}')}{where}"] if count > 0 else []


def _shorten(text: str) -> str:
    return make_printable(text, longest=_LONGEST)
