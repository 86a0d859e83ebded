"""Ctrl-C and SIGTERM at any moment of a command line, imports included: one line and an exit code.

An exception in the middle of an import or of a C++ library is lost, printed or turned into another one. So a
signal ends the process at once, except where files are being written: there it raises `KeyboardInterrupt`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130  # runtime.errors has it for all others; this module imports nothing before its handlers


class _State:
    """State of the handlers; a process has one command line, so there is one of these."""

    name = ""  # the command; empty where no command line handles signals
    stopped = "stopped"  # the message
    owner = 0  # the process that prints it: a forked child has the handlers too
    received: int | None = None  # the signal that came
    careful = 0  # how many `careful` blocks the main thread is in


_state = _State()


def guarded(name: str, work: Callable[[], int]) -> int:
    """Run a command line from its first import to its end and return the exit code.

    A signal gives one line on standard error and the exit code 130 (Ctrl-C) or 143 (SIGTERM). A signal that
    the caller ignores, as for the background jobs of a shell, stays ignored. Once the work is done, its exit
    code is what counts, and signals are ignored. Characters that the terminal's encoding lacks are printed as
    escapes.

    Args:
        name: the command, the first word of the line.
        work: imports and does everything and returns an exit code.
    """
    _fill_closed_streams()
    _print_anything()
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _state.name, _state.owner = name, os.getpid()
    sys.unraisablehook = _unraisable
    for number in handled:
        signal.signal(number, _stop)
    try:
        code = work()
    except SystemExit:
        raise
    except BaseException:
        if _state.received is None:
            raise
        code = _last_line()  # whatever a library made of the KeyboardInterrupt
    for number in handled:
        signal.signal(number, signal.SIG_IGN)
    if code == _INTERRUPTED and _state.received is not None:
        return 128 + _state.received
    return code


def _fill_closed_streams() -> None:
    """Let no file that is opened later take the place of a standard stream that this process was not given.

    Standard error is then a stream that keeps nothing: `print(file=None)` would write messages among the
    results. Standard input and output stay None, so that a command that needs them can say so.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (until the process ends)


def _print_anything() -> None:
    """Let a table with an arrow in it end no command whose terminal or log knows ASCII or cp1252 alone."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a process without a console has none
            stream.reconfigure(errors="backslashreplace")


def say_when_stopped(name: str, message: str) -> None:
    """Set the line that is printed when a signal ends the process.

    Args:
        name: the command, the first word; kept where no command line handles signals.
        message: the rest.
    """
    if _state.name:
        _state.name, _state.stopped = name, message


def received() -> int | None:
    """Return the number of the signal that has come, or None."""
    return _state.received


@contextmanager
def careful() -> Iterator[None]:
    """Let the first signal raise `KeyboardInterrupt`, where something has to be tidied up.

    A second one ends the process at once. Outside a command line that is `guarded` this changes nothing.
    """
    _state.careful += 1
    try:
        yield
    finally:
        _state.careful -= 1


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a question that a loop asks; the second one is in earnest."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            _stop(number, frame)
        elif _state.name:
            _state.received = number

    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, ask) for number in handled}
    except ValueError:  # not the main thread, which alone hears signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    again, _state.received = _state.received is not None, number
    if not _state.name or (_state.careful and not again):
        raise KeyboardInterrupt
    _last_line()
    os._exit(128 + number)


def _last_line() -> int:
    """Say that the work was stopped, in the process that the user started, and return the exit code."""
    if os.getpid() == _state.owner:
        try:
            # Past Python's buffers, which the signal may have interrupted.
            start = "\r\x1b[K" if sys.stderr.isatty() else ""
            os.write(sys.stderr.fileno(), f"{start}{_state.name}: {_state.stopped}\n".encode())
        except (OSError, ValueError, AttributeError):  # standard error is closed
            pass
    return _INTERRUPTED


def _unraisable(seen: sys.UnraisableHookArgs) -> None:
    """End the process where a KeyboardInterrupt was raised in a destructor or a callback, and lost."""
    if isinstance(seen.exc_value, KeyboardInterrupt) and _state.received is not None:
        _last_line()
        os._exit(128 + _state.received)
    sys.__unraisablehook__(seen)
