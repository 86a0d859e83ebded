"""The frame of a command line: errors as one line and an exit code, packages that are not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..errors import FAILED, INTERRUPTED, Interrupted, VitEdgeError, install_line
from ..interrupts import get_signal, set_stop_message
from ..text import make_printable
from .parser import LONGEST

_OURS = frozenset(("vit", "export", "calibration", "runtime", "vit_edge"))  # whose absence is a bug
_CALLED = {"PIL": "PIL (pillow)", "sklearn": "sklearn (scikit-learn)"}  # packages of another name
PACKAGE = __name__.rsplit(".", 2)[0]  # the name of the runtime's folder: an app may keep a copy under another


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

    Returns:
        the exit code of the work, or that of its error.
    """
    set_stop_message(name, stopped)
    try:
        return work()
    except VitEdgeError as error:
        if get_signal() is not None and not isinstance(error, Interrupted):
            return print_error(name, stopped, INTERRUPTED)  # what the work made of a Ctrl-C
        return print_error(name, error, error.exit_code)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if extra is None or package in _OURS:
            raise
        package = _CALLED.get(package, package)
        return print_error(name, f"{package} is not installed; {install_line(extra)}", FAILED)
    except KeyboardInterrupt:
        return print_error(name, stopped, INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


@contextmanager
def divert_standard_output() -> Iterator[None]:
    """Send what native code prints to standard error, while standard output is for results.

    Qualcomm's simulator prints one line when it starts.
    """
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_error(name: str, message: object, code: int) -> int:
    """Print one line of bounded length on standard error, `name` first, and return `code`."""
    print(f"{name}: {make_printable(str(message), longest=LONGEST)}", file=sys.stderr)
    return code


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it.

    Args:
        package: its name in an import.
    """
    if package in sys.modules:
        return bool(sys.modules[package])
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
