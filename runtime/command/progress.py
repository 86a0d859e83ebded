"""Progress of a long step: in place on a terminal, one line per 30 seconds in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from ..errors import InputError
from ..text import format_count, make_printable

VARIABLE = "VIT_EDGE_PROGRESS"  # seconds between two lines in a log; 0 for none
_LOG, _TERMINAL = 30.0, 0.2  # seconds between two lines
_TICK = 1.0  # seconds between two looks at a step that reports nothing

Clock = Callable[[], float]


class Cadence:
    """Clock of the lines: one at once and then 5 per second on a terminal, one per 30 seconds in a log.

    Args:
        clock: monotonic seconds.
        live: whether standard error is a terminal; None to find out.
        first: seconds after which a log gets its first line; None for 30, too.
    """

    def __init__(
        self, clock: Clock = time.monotonic, live: bool | None = None, *, first: float | None = None
    ) -> None:
        self.live = is_on_terminal() if live is None else live
        self.shown = False
        self._clock = clock
        self._every = _TERMINAL if self.live else _log_interval()
        self._last = float("-inf") if self.live else clock()
        if first is not None and first < self._every < float("inf"):
            self._last -= self._every - first

    def due(self) -> bool:
        """Return whether to print a line now; if so, the next one is due an interval later."""
        if self._clock() - self._last < self._every:
            return False
        self._last = self._clock()
        return True

    def print(self, line: str) -> None:
        """Print a line; on a terminal the next one takes its place."""
        self.shown = True
        start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line from a terminal, before something else is printed."""
        if self.live and self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def is_on_terminal() -> bool:
    """Return whether standard error is a terminal; a process without a console has neither."""
    return sys.stderr is not None and sys.stderr.isatty()


def _log_interval() -> float:
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or _LOG)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"{VARIABLE}: expected seconds between two lines, 0 for none, found {text!r}")
    return seconds or float("inf")


class Step:
    """One long step of a command, with a count that grows or without one.

    As a context manager it is shown by a thread of its own, also while the step is one long call.

    Args:
        command: the first word of a line in a log, "export".
        what: the work, "calibrating".
        total: how many there are; None or 0 for a step that counts nothing.
        unit: the noun for one of them.
        done: how many are done already.
        quiet: print nothing, as in all processes but the first.
        cadence: when to print; None for now and standard error.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        command: str,
        what: str,
        total: int | None = None,
        unit: str = "image",
        *,
        done: int = 0,
        quiet: bool = False,
        cadence: Cadence | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.command, self.what, self.total, self.unit = command, what, total or 0, unit
        self.done = self._before = done
        self.detail = ""  # printed behind the count, "epoch 3, loss 0.21"
        self._clock, self._began = clock, clock()
        self._cadence = cadence or Cadence(clock)
        self._printing = threading.Lock()
        self._over = threading.Event()
        if quiet:
            self._over.set()

    def update(self, count: int = 1) -> None:
        """Count what has been done, and print a line when it is due."""
        self.to(self.done + count)

    def to(self, done: int) -> None:
        """Set the count of what has been done, and print a line when it is due."""
        self.done = done
        self.tick()

    def tick(self) -> None:
        """Print a line when it is due."""
        with self._printing:
            if not self._over.is_set() and self._cadence.due():
                self._cadence.print(self.line())

    def line(self) -> str:
        """Return the progress so far in words."""
        seconds = self._clock() - self._began
        if self.total:
            parts = [f"{self.what}: {self.done:,} of {format_count(self.total, self.unit)}"]
        else:
            parts = [f"{self.what}: {format_count(self.done, self.unit)}" if self.done else self.what]
        parts += [self.detail] if self.detail else []
        here, left = self.done - self._before, self.total - self.done
        if here > 0 and left > 0:
            parts.append(f"{format_duration(seconds / here * left)} left")
        else:
            parts.append(f"{seconds:.0f} s")
        return ("" if self._cadence.live else f"{self.command}: ") + ", ".join(parts)

    def __enter__(self) -> Step:
        threading.Thread(target=self._run, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._printing:
            self._cadence.clear()

    def _run(self) -> None:
        while not self._over.wait(_TICK):
            self.tick()


def print_for_people(line: str) -> None:
    """Print a line for people on standard error; on a terminal it replaces the line of progress.

    Args:
        line: controls in it are escaped, since parts of it may come from a file.
    """
    line = make_printable(line)
    print(f"\r\x1b[K{line}" if is_on_terminal() else line, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
