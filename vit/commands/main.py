"""The parser of `python -m vit train | import | summary | plots`, and what all commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from runtime.command.line import run_command
from runtime.command.parser import Parser
from runtime.errors import DONE
from vit.commands.import_weights import add_import
from vit.commands.inspect_run import add_plots, add_summary
from vit.commands.train import add_train

# Extras of pyproject.toml. Images are decoded by the runtime, so that each has `cpu` beside it.
TRAIN = "train,cpu"
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (add_train, "train on images, from random weights or from a checkpoint"),
    "import": (add_import, "turn weights of Hugging Face, timm, torchvision or Google into a checkpoint"),
    "summary": (add_summary, "print layers, shapes, parameters and multiply-adds of a model"),
    "plots": (add_plots, "draw curves, confusion, filters, attention and mistakes of a run"),
}


LABEL = "python -m export RUN, then python -m runtime artifacts/RUN IMAGES"
EXAMPLES = {
    "train": (
        "--data PHOTOS --model tiny --out runs/flowers",
        "--data PHOTOS --from runs/base --out runs/flowers",
        "--data PHOTOS --model tiny --out runs/flowers --resume",
    ),
    "import": (
        "vit-base-patch16-224/ --out runs/base",
        "weights.safetensors --heads 12 --out runs/base",
        "checkpoint.pth --labels classes.txt --out runs/base",
    ),
    "summary": ("tiny", "runs/flowers", "runs/flowers/model.safetensors"),
    "plots": ("runs/flowers", "runs/flowers --data PHOTOS", "runs/flowers --data PHOTOS --out plots"),
}
# Words that people try, and where to find what they want.
HINTS = {
    **dict.fromkeys(
        ("predict", "classify", "infer", "inference", "label", "run", "test", "eval", "evaluate"),
        f"to label images, export the run: {LABEL}",
    ),
    **dict.fromkeys(("export", "quantize", "convert"), "type python -m export"),
    **dict.fromkeys(("finetune", "fine-tune"), "type train --data PHOTOS --from CHECKPOINT"),
}


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m vit") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    options = parser(prog).parse_args(arguments)

    def work() -> int:
        from runtime.images.openers import register_openers

        register_openers()
        # Each command imports what it needs once the arguments are understood, so that --help is quick.
        command: Callable[[argparse.Namespace], None] = options.command
        command(options)
        return DONE

    return run_command("vit", work, extra=options.extra)


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = Parser(
        prog=prog,
        description="Train Vision Transformers, import them, and look inside.",
    )
    top.name = "vit"
    top.add_version()
    top.hints = HINTS
    top.add_examples(
        "train --data PHOTOS --model tiny --out runs/flowers",
        "import vit-base-patch16-224/ --out runs/base",
        "train --data PHOTOS --from runs/base --out runs/flowers",
        rest=f"To label images, export the run: {LABEL}.\n"
        f"Options of a command: {prog} COMMAND --help.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.",
    )
    top.set_defaults(extra=TRAIN)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        command.name = top.name
        add(command)
        command.add_examples(*EXAMPLES[name])
    return top
