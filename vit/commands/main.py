"""The parser of `python -m vit train | import | summary | plots`, and what all commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from runtime.command.line import run_command
from runtime.command.parser import Parser, options_from
from runtime.errors import DONE
from vit.commands.import_options import ImportOptions
from vit.commands.import_weights import run_import
from vit.commands.inspect_run import PlotsOptions, SummaryOptions, run_plots, run_summary
from vit.commands.train import run_train
from vit.training.recipe import TrainOptions

# Extras of pyproject.toml. Images are decoded by the runtime, so that each has `cpu` beside it.
TRAIN = "train,cpu"
LABEL = "python -m export RUN, then python -m runtime artifacts/RUN IMAGES"


class Command(NamedTuple):
    """One command of `python -m vit`.

    Attributes:
        options: the dataclass of its options.
        work: takes an instance; imports what it needs only then, so that --help is quick.
        summary: its line in the help of all commands.
        examples: its arguments in the last lines of its help.
    """

    options: type[Any]
    work: Callable[[Any], None]
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "train": Command(
        TrainOptions,
        run_train,
        "train on images, from random weights or from a checkpoint",
        (
            "--data PHOTOS --model tiny --out runs/flowers",
            "--data PHOTOS --from runs/base --out runs/flowers",
            "--data PHOTOS --model tiny --out runs/flowers --resume",
        ),
    ),
    "import": Command(
        ImportOptions,
        run_import,
        "turn weights of Hugging Face, timm, torchvision or Google into a checkpoint",
        (
            "google/vit-base-patch16-224 --out runs/base",
            "vit-base-patch16-224/ --out runs/base",
            "weights.safetensors --heads 12 --out runs/base",
            "checkpoint.pth --labels classes.txt --out runs/base",
            'siglip2-base/ --classes "cat, dog, empty field" --out runs/words',
            "runs/base --examples PHOTOS --out runs/mine",
        ),
    ),
    "summary": Command(
        SummaryOptions,
        run_summary,
        "print layers, shapes, parameters and multiply-adds of a model",
        ("tiny", "runs/flowers", "runs/flowers/model.safetensors"),
    ),
    "plots": Command(
        PlotsOptions,
        run_plots,
        "draw curves, confusion, filters, attention and mistakes of a run",
        ("runs/flowers", "runs/flowers --data PHOTOS", "runs/flowers --data PHOTOS --out plots"),
    ),
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
    """Run the command line and return its exit code; `prog` is the command as it was typed, for usage."""
    found = make_parser(prog).parse_args(arguments)

    def work() -> int:
        from runtime.images.other_formats import register_openers

        register_openers()
        command = COMMANDS[found.command]
        command.work(options_from(command.options, found))
        return DONE

    return run_command("vit", work, extra=TRAIN)


def make_parser(prog: str) -> Parser:
    """Return the parser of all commands; `prog` is the command as it was typed, for usage and examples."""
    top = Parser(
        prog=prog,
        description="Train Vision Transformers, import them, and look inside.",
        first_word="vit",
        hints=HINTS,
    )
    top.add_version()
    top.add_examples(
        "train --data PHOTOS --model tiny --out runs/flowers",
        "import vit-base-patch16-224/ --out runs/base",
        "train --data PHOTOS --from runs/base --out runs/flowers",
        rest=f"To label images, export the run: {LABEL}.\n"
        f"Options of a command: {prog} COMMAND --help.\n"
        "Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (options, _, summary, examples) in COMMANDS.items():
        parser = commands.add_parser(name, help=summary, options=options, first_word="vit", hints=HINTS)
        parser.add_examples(*examples)
    return top
