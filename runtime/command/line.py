"""Shared parts of the command lines: errors as one line and an exit code, types of arguments."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import NoReturn

from ..errors import FAILED, INTERRUPTED, WRONG_USE, Interrupted, VitEdgeError, install_line
from ..interrupts import received, say_when_stopped
from ..text import printable

PACKAGE = __name__.rsplit(".", 2)[0]  # the name of the runtime's folder: an app may keep a copy under another
_LONGEST = 2000  # characters of a message: parts of it may come from a file


def run_command(
    name: str, work: Callable[[], int], *, stopped: str = "stopped", extra: str | None = None
) -> int:
    """Run the work of a command line and return its exit code.

    A `VitEdgeError` is one line on standard error, and so is a package that is not installed where an extra
    brings it; any other exception is a bug and passes through.

    Args:
        name: the command, the first word of each message.
        work: does everything and returns an exit code.
        stopped: the message after Ctrl-C.
        extra: the extra of pyproject.toml that brings every package that the work imports.
    """
    say_when_stopped(name, stopped)
    try:
        return work()
    except VitEdgeError as error:
        if received() is not None and not isinstance(error, Interrupted):
            return complain(name, stopped, INTERRUPTED)  # what the work made of a Ctrl-C
        return complain(name, error, error.exit_code)
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        return complain(name, f"{error.name} is not installed; {install_line(extra)}", FAILED)
    except KeyboardInterrupt:
        return complain(name, stopped, INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def complain(name: str, message: object, code: int) -> int:
    """Print one line of bounded length on standard error and return `code`."""
    print(f"{name}: {printable(str(message), longest=_LONGEST)}", file=sys.stderr)
    return code


def installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    if package in sys.modules:
        return bool(sys.modules[package])
    try:
        return find_spec(package) is not None
    except ImportError:
        return False


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and not all of its options."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line and exit with the code of wrong use."""
        shown = printable(message, longest=_LONGEST)
        self.exit(WRONG_USE, f"{self.prog}: error: {shown}; see {self.prog} --help\n")


def positive(text: str) -> int:
    """Parse an argument that is a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def natural(text: str) -> int:
    """Parse an argument that is a whole number from 0.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Return a parser of an argument that is a number within limits.

    Args:
        low: the lowest number.
        high: the highest number.
        above: whether `low` itself is refused.
    """

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or not low <= found <= high or (above and found == low):
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
        return found

    if math.isfinite(low) and math.isfinite(high):
        expected = f"a number from {low:g} to {high:g}"
    elif math.isfinite(low):
        expected = f"a number {'above' if above else 'from'} {low:g}"
    else:
        expected = "a number"
    return parse
