"""The command `vit-edge COMMAND …`: hand the words to the command line of the package that does the work.

Signals are handled before the imports, and nothing heavy is imported before a command has read its arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runtime.interrupts import run_interruptible

if TYPE_CHECKING:
    from runtime.command.parser import Parser

_OTHERS = {
    "export": "turn a model into ONNX files for a device, INT8 among them, and measure them",
    "run": "classify images with such a file, or embed them",
    "check": "check that such a file answers here as it did where it was made",
    "card": "write a model card and a list of components for what an export wrote",
}
_HINTS = {
    **dict.fromkeys(("predict", "classify", "infer", "inference", "label"), "did you mean run?"),
    **dict.fromkeys(("quantize", "convert"), "did you mean export?"),
}


def main(arguments: Sequence[str] | None = None, *, prog: str = "vit-edge") -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command and its arguments; None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    import export.card.command as card
    import export.command_line as export
    import runtime.command_line as runtime
    import runtime.self_test.command as check
    import runtime.update.command as update
    import vit.commands.main as vit

    words = list(sys.argv[1:] if arguments is None else arguments)
    command = str(make_parser(prog).parse_args(words[:1]).command)
    if command in vit.COMMANDS:
        return vit.main(words, prog=prog)
    if command in update.COMMANDS:
        return update.main(words, prog=prog)
    others: dict[str, Callable[..., int]] = {"export": export.main, "check": check.main, "card": card.main}
    return others.get(command, runtime.run_quietly)(words[1:], prog=f"{prog} {command}")


def make_parser(prog: str) -> Parser:
    """Return the parser of the first word.

    Args:
        prog: the command as it was typed, for usage and examples.
    """
    import runtime.update.command as update
    import vit.commands.main as vit
    from runtime.command.parser import Parser

    top = Parser(
        prog=prog,
        description="From a Vision Transformer to a small INT8 model on a device.",
        usage="%(prog)s [-h] COMMAND ...",
        first_word="vit-edge",
        hints=vit.HINTS | _HINTS,
    )
    top.add_version()
    top.add_examples(
        "train --data PHOTOS --model tiny --out runs/flowers",
        "export runs/flowers --quantize --calibration PHOTOS",
        "run artifacts/flowers holiday/ --output labels.jsonl",
        rest=f"Each command says more: {prog} COMMAND --help.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    summaries = {name: command.summary for name, command in vit.COMMANDS.items()}
    updates = {name: command.summary for name, command in update.COMMANDS.items()}
    for name, summary in (summaries | _OTHERS | updates).items():
        commands.add_parser(name, help=summary, add_help=False)
    return top


def console() -> int:
    """Run the command of a process: what the installed script calls."""
    return run_interruptible("vit-edge", main)


if __name__ == "__main__":
    sys.exit(run_interruptible("vit-edge", lambda: main(prog="python -m vit_edge")))
