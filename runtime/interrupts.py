"""Handle Ctrl-C and SIGTERM at any moment of a command line, imports included: one line and an exit code.

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
_INTERRUPTED = 130  # as in runtime.errors, which is not imported before the handlers are set


class _State:
    name = ""  # the command; empty where no command line handles signals
    message = "stopped"
    owner = 0  # the process that prints the message: a forked child has the handlers too
    received: int | None = None  # the signal that came
    raising = 0  # number of `raise_on_signal` blocks that the main thread is in


_state = _State()


def run_interruptible(name: str, work: Callable[[], int]) -> int:
    """Run a command line from its first import to its end, and return its exit code.

    A signal prints one line to standard error and ends the process with code 130 (Ctrl-C) or 143 (SIGTERM).
    A signal that the caller ignores, as a shell does for background jobs, stays ignored, and so does any
    signal after the work is done. Characters that the terminal's encoding lacks are printed as escapes.

    Args:
        name: the command, the first word of the line.
        work: does everything, imports included, and returns an exit code.

    Returns:
        The exit code of `work`, or that of the signal that stopped it.
    """
    _prepare_streams()
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _state.name, _state.owner = name, os.getpid()
    sys.unraisablehook = _handle_unraisable
    for number in handled:
        signal.signal(number, _stop)
    try:
        code = work()
    except SystemExit:
        raise
    except BaseException:
        if _state.received is None:
            raise
        code = _print_message()  # whatever a library made of the KeyboardInterrupt
    for number in handled:
        signal.signal(number, signal.SIG_IGN)
    if code == _INTERRUPTED and _state.received is not None:
        return 128 + _state.received
    return code


def _prepare_streams() -> None:
    """Open the null device for each standard stream that is closed, so that no other file gets its number.

    Standard error then discards what is written: `print(file=None)` would write messages among the results.
    Standard input and output stay None, so that a command that needs them can report it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a process without a console has none
            stream.reconfigure(errors="backslashreplace")


def set_stop_message(name: str, message: str) -> None:
    """Set the line that is printed when a signal ends the process, where a command line handles signals."""
    if _state.name:
        _state.name, _state.message = name, message


def get_signal() -> int | None:
    """Return the number of the signal that was received, or None."""
    return _state.received


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Make the first signal raise `KeyboardInterrupt` in this block, so that it can remove its files.

    A second signal ends the process at once. Outside `run_interruptible` this changes nothing.
    """
    _state.raising += 1
    try:
        yield
    finally:
        _state.raising -= 1


@contextmanager
def defer_signals() -> Iterator[Callable[[], bool]]:
    """Let a loop stop itself after the first Ctrl-C or SIGTERM; the second one ends the process.

    Yields:
        A function that returns whether a signal was received. In a thread other than the main one it always
        returns False.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _stop(number, frame)
        elif _state.name:
            _state.received = number

    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, note) for number in handled}
    except ValueError:  # only the main thread receives signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    again, _state.received = _state.received is not None, number
    if not _state.name or (_state.raising and not again):
        raise KeyboardInterrupt
    _print_message()
    os._exit(128 + number)


def _print_message() -> int:
    """Print that the work was stopped, in the process that the user started; return the exit code."""
    if os.getpid() == _state.owner:
        try:
            # Past Python's buffers, which the signal may have interrupted.
            start = "\r\x1b[K" if sys.stderr.isatty() else ""
            os.write(sys.stderr.fileno(), f"{start}{_state.name}: {_state.message}\n".encode())
        except (OSError, ValueError, AttributeError):  # standard error is closed
            pass
    return _INTERRUPTED


def _handle_unraisable(lost: sys.UnraisableHookArgs) -> None:
    """End the process where a KeyboardInterrupt was raised in a destructor or a callback, and lost."""
    if isinstance(lost.exc_value, KeyboardInterrupt) and _state.received is not None:
        _print_message()
        os._exit(128 + _state.received)
    sys.__unraisablehook__(lost)
