"""Shared parts of the command lines: errors as one line and an exit code, types of arguments."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from ..errors import FAILED, INTERRUPTED, WRONG_USE, Interrupted, VitEdgeError, install_line
from ..interrupts import get_signal, set_stop_message
from ..text import make_printable, suggest

_OURS = frozenset(("vit", "export", "calibration", "runtime", "vit_edge"))  # whose absence is a bug
_CALLED = {"PIL": "PIL (pillow)", "sklearn": "sklearn (scikit-learn)"}  # packages of another name
_WORD = re.compile(r"[\w-]+")
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
    set_stop_message(name, stopped)
    try:
        return work()
    except VitEdgeError as error:
        if get_signal() is not None and not isinstance(error, Interrupted):
            return complain(name, stopped, INTERRUPTED)  # what the work made of a Ctrl-C
        return complain(name, error, error.exit_code)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if extra is None or package in _OURS:
            raise
        package = _CALLED.get(package, package)
        return complain(name, f"{package} is not installed; {install_line(extra)}", FAILED)
    except KeyboardInterrupt:
        return complain(name, stopped, INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def complain(name: str, message: object, code: int) -> int:
    """Print one line of bounded length on standard error and return `code`."""
    print(f"{name}: {make_printable(str(message), longest=_LONGEST)}", file=sys.stderr)
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
    """A parser whose errors are one line with the nearest word, and not all of its options.

    Attributes:
        hints: what to say of words that people try as a command, by the word.
        name: the first word of all messages, the one that `run_command` takes; None for that of `prog`.
    """

    hints: Mapping[str, str] = MappingProxyType({})
    name: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse words that this parser does not know: of a command's, its own parser tells the nearest."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line and exit with the code of wrong use."""
        shown = make_printable(message, longest=_LONGEST)
        text = f"{shown}{self._nearest(message)}; see {self.prog} --help"
        self.exit(WRONG_USE, f"{self.name or _name_of(self.prog)}: error: {text}\n")

    def add_version(self) -> None:
        """Add the option that prints the version."""
        self.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")

    def add_examples(self, *lines: str, rest: str = "") -> None:
        """End the help with command lines to copy.

        Args:
            lines: words behind the command.
            rest: what follows, with its own line breaks.
        """
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        shown = "\n".join(f"  {self.prog} {line}" for line in lines)
        self.epilog = f"examples:\n{shown}" + (f"\n\n{rest}" if rest else "")

    def _nearest(self, message: str) -> str:
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word = choice[1]
            return f"; {self.hints[word]}" if word in self.hints else suggest(word, _WORD.findall(choice[2]))
        if message.startswith("unrecognized arguments: -"):
            word = message.split()[2].partition("=")[0]
            return suggest(word, [each for each in self._option_string_actions if each[:2] == "--"])
        return ""


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(f"vit-edge {_version()}")
        parser.exit()


def _version() -> str:
    """Return the version of a checkout, or of what is installed."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    try:
        with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
            project = tomllib.load(file)["project"]
        if project["name"] == "vit-edge":
            return str(project["version"])
    except (OSError, KeyError, ValueError):  # no checkout, or a copy in another project
        pass
    try:
        return version("vit-edge")
    except PackageNotFoundError:
        return "of an unknown version"


def _name_of(prog: str) -> str:
    """Return the first word of all messages of a command: vit for `python -m vit train`."""
    if not prog.startswith("python -m "):
        return prog
    return prog.split()[2].rpartition(".")[2]


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
