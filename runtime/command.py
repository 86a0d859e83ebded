"""Shared parts of the command lines: errors as one line and an exit code, types of arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from .errors import FAILED, INTERRUPTED, VitEdgeError, install_line

PACKAGE = __name__.rpartition(".")[0]  # the name of this folder: an app may keep a copy under another one


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
    try:
        return work()
    except VitEdgeError as error:
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
    """Print one line on standard error and return `code`."""
    print(f"{name}: {message}", file=sys.stderr)
    return code


def positive(text: str) -> int:
    """Parse an argument that is a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)
