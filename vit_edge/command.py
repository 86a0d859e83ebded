"""The commands of `vit-edge`: hand the words to the command line of the package that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import export.command_line as export
import runtime.command_line as runtime
import vit.commands.main as vit
from runtime.command.parser import Parser

_OTHERS: dict[str, tuple[Callable[..., int], str]] = {
    "export": (export.main, "turn a model into ONNX files for a device, INT8 among them, and measure them"),
    "run": (runtime.run_quietly, "classify images with such a file, or embed them"),
}


_HINTS = {
    **dict.fromkeys(("predict", "classify", "infer", "inference", "label"), "did you mean run?"),
    **dict.fromkeys(("quantize", "convert"), "did you mean export?"),
}


def main(arguments: Sequence[str] | None = None, *, prog: str = "vit-edge") -> int:
    """Run a command and return its exit code. Nothing heavy is imported before its own arguments are read.

    Args:
        arguments: the command and its arguments; None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = str(parser(prog).parse_args(words[:1]).command)
    if command in vit.COMMANDS:
        return vit.main(words, prog=prog)
    work, _ = _OTHERS[command]
    return work(words[1:], prog=f"{prog} {command}")


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the first word."""
    top = Parser(
        prog=prog,
        description="From a Vision Transformer to a small INT8 model on a device.",
        usage="%(prog)s [-h] COMMAND ...",
    )
    top.name = "vit-edge"
    top.add_version()
    top.hints = {**vit.HINTS, **_HINTS}
    top.add_examples(
        "train --data PHOTOS --model tiny --out runs/flowers",
        "export runs/flowers --quantize --calibration PHOTOS",
        "run artifacts/flowers holiday/ --output labels.jsonl",
        rest=f"Each command says more: {prog} COMMAND --help.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for table in (vit.COMMANDS, _OTHERS):
        for name, (_, summary) in table.items():
            commands.add_parser(name, help=summary, add_help=False)
    return top
