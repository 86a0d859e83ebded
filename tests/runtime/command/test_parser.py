"""Options of a command as the fields of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from runtime.command.parser import REQUIRED, OptionGroup, Parser, argument, natural, option, options_from

FAST = OptionGroup("speed", "How fast.")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Describe the command.

    This line is for readers of the code.
    """

    model: Path = argument(REQUIRED, "the model", metavar="MODEL")
    images: tuple[str, ...] = argument(REQUIRED, "the images", metavar="IMAGES")
    top: int = option(5, "share, in %")
    seed: int | None = option(None, "a seed", parse=natural)
    out_folder: Path | None = option(None, "the folder", metavar="DIR")
    copy: bool = option(False, "copy")
    device: Literal["cpu", "cuda"] = option("cpu", "where", group=FAST)
    resume: Literal["yes", "auto"] | None = option(None, "continue", alone="yes")
    keep: tuple[str, ...] = option((), "a layer", flag="--keep-float")
    note: str = "no option"


def parse(words: str) -> Options:
    return options_from(Options, Parser(prog="x", options=Options).parse_args(words.split()))


def test_defaults_are_those_of_the_fields() -> None:
    assert parse("m a b") == Options(model=Path("m"), images=("a", "b"))


def test_values_have_the_types_of_the_fields() -> None:
    words = "--top 7 --seed 0 --out-folder o --copy --device cuda --resume auto --keep-float a --keep-float b"
    assert parse(f"m i {words}") == Options(
        model=Path("m"),
        images=("i",),
        top=7,
        seed=0,
        out_folder=Path("o"),
        copy=True,
        device="cuda",
        resume="auto",
        keep=("a", "b"),
    )
    assert parse("m i --resume").resume == "yes"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "required: MODEL, IMAGES"),
        ("m i --top 0", "--top: expected a whole number from 1, found '0'"),
        ("m i --seed -1", "--seed: expected"),
        ("m i --device cuds", "invalid choice: 'cuds'"),
        ("m i --device cuds", "did you mean cuda?; see x --help"),
        ("m i --kep-float=a", "unrecognized arguments: --kep-float=a; did you mean --keep-float?"),
        ("m i --note n", "unrecognized arguments: --note n"),
    ],
)
def test_wrong_values_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_has_the_description_the_defaults_and_the_groups() -> None:
    text = Parser(prog="x", options=Options).format_help()
    assert "\nDescribe the command.\n" in text
    assert "This line" not in text
    assert "share, in % (default: 5)" in text
    assert "--out-folder DIR" in text
    assert "speed:\n  How fast.\n" in text
    assert "where (default: cpu)" in text
