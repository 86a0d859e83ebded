"""Options of a command as the fields of one dataclass, and the parser that is made from them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..errors import WRONG_USE
from ..text import make_printable, suggest

T = TypeVar("T")
REQUIRED = MISSING  # in the place of a default
LONGEST = 2000  # characters of a message: parts of it may come from a file


@dataclass(frozen=True)
class OptionGroup:
    """A part of --help with a title of its own."""

    title: str
    description: str


def option(
    default: Any,
    help: str,
    *,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    flag: str | None = None,
    alone: object = None,
    group: OptionGroup | None = None,
) -> Any:
    """Return the field of an option, `--name` for a field `name`.

    Its type says how it is read: a `bool` takes no value, a `Literal` one of its words, an `int` is a whole
    number from 1, a `tuple` may be repeated; others are called with the text.

    Args:
        default: `REQUIRED` for none.
        help: its meaning, for --help, which adds a default that is a number or a word.
        metavar: the name of its value in --help; None for N of an `int`, else the name of the field.
        parse: reads the value in the place of the type; raises argparse.ArgumentTypeError.
        flag: the word for it; None for the name of the field, "" for a positional argument.
        alone: its value where the option stands without one.
        group: the part of --help.
    """
    texts = {"help": help, "metavar": metavar, "parse": parse, "flag": flag, "alone": alone, "group": group}
    return field(default=default, metadata=texts)


def argument(default: Any, help: str, *, metavar: str) -> Any:
    """Return the field of a positional argument; a `tuple` takes one or more.

    Args:
        default: as for `option`; so are the others.
        help: its meaning.
        metavar: its name in --help.
    """
    return option(default, help, metavar=metavar, flag="")


def options_from(kind: type[T], found: argparse.Namespace) -> T:
    """Return the values that a parser has found as an instance of a dataclass.

    Args:
        kind: the dataclass that the options of the parser were made from.
        found: what its `parse_args` returned.
    """
    values = {each.name: getattr(found, each.name) for each in _options_of(kind)}
    return kind(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})


def _options_of(kind: type[Any]) -> list[Field[Any]]:
    return [each for each in fields(kind) if "help" in each.metadata]


def _add_option(add: Callable[..., object], made: Field[Any], kind: Any) -> None:
    """Add the option of a field to a parser or a group; of a union, the first type counts: it is not None."""
    texts, default, flag = made.metadata, cast("Any", made.default), made.metadata["flag"]
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    if several := get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    shown = texts["help"].replace("%", "%%")
    if isinstance(default, str | int | float) and kind is not bool and "(default" not in shown:
        shown += " (default: %(default)s)"
    settings: dict[str, Any] = {"help": shown}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        settings |= {"metavar": texts["metavar"], "default": None if default is REQUIRED else default}
        if get_origin(kind) is Literal and texts["parse"] is None:
            settings |= {"choices": get_args(kind), "type": type(get_args(kind)[0])}
        else:
            settings["type"] = texts["parse"] or (positive if kind is int else kind)
            settings["metavar"] = texts["metavar"] or ("N" if kind is int else None)
    if texts["alone"] is not None:
        settings |= {"nargs": "?", "const": texts["alone"]}
    if flag == "":
        nargs = "+" if several else None if default is REQUIRED else "?"
        add(made.name, nargs=nargs, **settings)
        return
    if several:
        settings |= {"action": "append", "default": list(default)}
    name = flag or "--" + made.name.replace("_", "-")
    add(name, dest=made.name, required=default is REQUIRED, **settings)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the nearest word, and not all of its options.

    Args:
        options: a dataclass whose fields `option` and `argument` made; its first line describes the command.
        first_word: the first word of all messages, the one that `run_command` takes; None for that of `prog`.
        hints: what to say of words that people try as a command, by the word.
        settings: those of argparse.
    """

    def __init__(
        self,
        *,
        options: type[Any] | None = None,
        first_word: str | None = None,
        hints: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.first_word, self.hints = first_word or _first_word(self.prog), hints
        if options is None:
            return
        self.description = str(options.__doc__).partition("\n")[0]
        kinds, groups = get_type_hints(options), dict[OptionGroup, argparse._ArgumentGroup]()
        for each in _options_of(options):
            group = each.metadata["group"]
            if group is not None and group not in groups:
                groups[group] = self.add_argument_group(group.title, group.description)
            _add_option((groups[group] if group else self).add_argument, each, kinds[each.name])

    def add_version(self) -> None:
        """Add the option that prints the version."""
        self.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version and exit")

    def add_examples(self, *lines: str, rest: str = "") -> None:
        """End the help with command lines to copy, the words behind the command, and `rest` as it is."""
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        shown = "\n".join(f"  {self.prog} {line}" for line in lines)
        self.epilog = f"examples:\n{shown}" + (f"\n\n{rest}" if rest else "")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown words: those of a command here, where its options are, not in the parser above."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [each for each in self._option_string_actions if each[:2] == "--"]
            nearest = suggest(rest[0].partition("=")[0], flags) if rest[0][0] == "-" else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}", nearest)
        return found, rest

    def error(self, message: str, hint: str = "") -> NoReturn:
        """Print what is wrong in one line and exit with the code of wrong use."""
        text = f"{make_printable(message, longest=LONGEST)}{hint}; see {self.prog} --help"
        self.exit(WRONG_USE, f"{self.first_word}: error: {text}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Add the nearest choice to the message, or the hint for the word."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            nearest = suggest(str(value), map(str, action.choices or ()))
            error.message += f"; {self.hints[value]}" if value in self.hints else nearest
            raise


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(f"vit-edge {_version()}")
        parser.exit()


def _version() -> str:
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


def _first_word(prog: str) -> str:
    """Return the first word of all messages of a command: vit for `python -m vit train`."""
    return prog.split()[2].rpartition(".")[2] if prog.startswith("python -m ") else prog


def whole_number(least: int) -> Callable[[str], int]:
    """Return a parser of a whole number from `least`; it raises argparse.ArgumentTypeError for others.

    Args:
        least: the lowest number.
    """

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, found {text!r}")
        return int(text)

    return parse


positive, natural = whole_number(1), whole_number(0)


def number(
    low: float = -math.inf, high: float = math.inf, *, above: bool = False, what: str = "a number"
) -> Callable[[str], float]:
    """Return a parser of a number within limits.

    Args:
        low: the lowest number.
        high: the highest number.
        above: whether `low` itself is refused.
        what: the noun in the message.
    """

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or not low <= found <= high or (above and found == low):
            raise argparse.ArgumentTypeError(f"expected {what}{limits}, found {text!r}")
        return found

    limits = "" if math.isinf(low) else f" {'above' if above else 'from'} {low:g}"
    limits += "" if math.isinf(high) else f" to {high:g}"
    return parse
