"""The command line: `python -m vit train | import | summary | plots`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from runtime.command import run_command
from runtime.errors import DONE
from vit.run_folder import open_run_folder


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m vit") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    options = parser(prog).parse_args(arguments)

    def work() -> int:
        # Each command imports what it needs once the arguments are understood, so that --help is quick.
        from runtime.images.openers import register_openers

        register_openers()
        options.command(options)
        return DONE

    return run_command("vit", work, extra=options.extra)


def parser(prog: str) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=prog, description="Vision Transformers: train, import, look inside.")
    top.set_defaults(extra=TRAIN)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (add, summary) in COMMANDS.items():
        add(commands.add_parser(name, help=summary))
    return top


def add_summary(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_summary)
    command.description = (
        "Print the layers, shapes, parameters and multiply-adds of a checkpoint or a named size."
    )
    command.add_argument("model", help="a checkpoint, or one of tiny, small, base, large, huge")


def run_summary(options: argparse.Namespace) -> None:
    from vit.checkpoint import load_checkpoint
    from vit.config import SIZES
    from vit.inspect.summary import summary_text

    named = SIZES.get(options.model)
    print(summary_text(named or load_checkpoint(options.model).model.config))


def add_plots(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_plots, extra=PLOTS)
    command.description = "Draw what a run has learned as PNG and one HTML page, in RUN/plots."
    command.add_argument("run", type=Path, help="a checkpoint or the folder of a run")
    command.add_argument(
        "--data", help="images for confusion, attention and mistakes (their test split, if any)"
    )
    command.add_argument("--out", type=Path, help="another folder than RUN/plots")


def run_plots(options: argparse.Namespace) -> None:
    from vit.checkpoint import load_checkpoint
    from vit.inspect.page import write_plots
    from vit.training.setup import images_to_judge

    checkpoint = load_checkpoint(options.run)
    images = images_to_judge(options.data, checkpoint.labels) if options.data else None
    print(write_plots(checkpoint, images, options.out or checkpoint.path.parent / "plots"))


ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")  # vit.config's, without the cost of importing it


def add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_import)
    command.description = "Turn weights of another project into a checkpoint; nothing in them is executed."
    add = command.add_argument
    add("source", type=Path, help="a Hugging Face or timm folder, or a .safetensors, .pth, .bin or .npz file")
    add("--out", required=True, type=Path, help="folder for the checkpoint")
    add("--labels", type=Path, metavar="FILE", help="names of the classes, one per line, class 0 first")
    add("--heads", type=int, metavar="N", help="attention heads, where the source does not say it")
    add("--activation", choices=ACTIVATIONS, help="of the MLPs, where the source does not say it")
    add("--weights", metavar="NAME", help="which set, where a file has several (default: a moving average)")


def run_import(options: argparse.Namespace) -> None:
    from vit.checkpoint import save_checkpoint
    from vit.pretrained import read_source
    from vit.pretrained.load import named_labels

    found = read_source(
        options.source, heads=options.heads, activation=options.activation, weights=options.weights
    )
    if options.labels:
        found = named_labels(found, options.labels)
    config = found.model.config
    say(f"{found.format} weights: width {config.width}, depth {config.depth}, {config.classes} classes")
    for sentence in found.notes:
        say(f"note: {sentence}")
    for sentence in found.assumed:
        say(f"assumed, since the source does not say: {sentence}")
    if not config.classes:
        say("note: the weights have no head; fine-tune one with python -m vit train --from")
    recipe = {"imported": found.format, "source": options.source.name, "assumed": list(found.assumed)}
    recipe["notes"] = list(found.notes)
    path = save_checkpoint(
        options.out, model=found.model, preprocess=found.preprocess, labels=found.labels, recipe=recipe
    )
    print(path)


def add_train(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_train)
    command.description = "Train a ViT on images and keep the best checkpoint in OUT/model.safetensors."
    add = command.add_argument
    add(
        "--data",
        required=True,
        help="PHOTOS/<class>/…, PHOTOS/train/<class>/… (with val or test beside train), "
        "a folder of IDX files, or one of the words digits and fashion-mnist",
    )
    add(
        "--out",
        required=True,
        type=Path,
        help="folder for the checkpoint, metrics.csv and the state of the run",
    )
    _add_start_options(command)
    _add_recipe_options(command)
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    add("--tensorboard", action="store_true", help="write OUT/tensorboard as well")
    add(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on with the interrupted run in OUT; auto: or begin one (for torchrun --max-restarts)",
    )
    add("--overwrite", action="store_true", help="replace the run in OUT")


def _add_start_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--model",
        help="tiny, small, base, large or huge (default: tiny, or what the preset or --from brings)",
    )
    add(
        "--from",
        dest="source",
        type=Path,
        help="a checkpoint to start from; it gets a new head for the new classes",
    )
    add(
        "--preset",
        help="scratch, finetune, probe (a new head on frozen features), or a kept example: digits, "
        "fashion, fashion-quick (default: scratch, or finetune with --from)",
    )
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="other resolution; positions of --from are interpolated",
    )
    add("--patch-size", type=int, metavar="PIXELS", help="edge of a patch, for a model from nothing")
    add(
        "--teacher", type=Path, help="a checkpoint with the same classes to learn from as well (distillation)"
    )


def _add_recipe_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--epochs", type=int)
    add("--batch", type=int, help="images a step, of all processes together")
    add("--lr", type=float, help="the highest learning rate")
    add("--seed", type=int)
    add(
        "--merge-tokens",
        type=int,
        metavar="R",
        help="train with R similar patches merged per block in the middle half of the blocks, as "
        "python -m export --merge-tokens R merges them",
    )
    add(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change any field of the recipe, e.g. --set mixup=0.2; all of them are printed at the start",
    )


def run_train(options: argparse.Namespace) -> None:
    import json

    resume = open_run_folder(options.out, resume=options.resume, overwrite=options.overwrite, report=say)
    from vit.training.setup import TrainOptions, prepare
    from vit.training.train import train

    names = {field.name for field in fields(TrainOptions)}
    run = prepare(TrainOptions(**{name: value for name, value in vars(options).items() if name in names}))
    for sentence in run.data.notes:
        say(f"note: {sentence}")
    say(f"recipe: {json.dumps(run.recipe.to_dict())}")
    path = train(
        run.recipe,
        model=run.model,
        data=run.data,
        preprocess=run.preprocess,
        out=options.out,
        device=options.device,
        resume=resume,
        teacher=run.teacher,
        notes=run.notes,
        tensorboard=options.tensorboard,
        report=say,
    )
    print(path)


def say(line: str) -> None:
    """A message for people: on standard error, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


# Extras of pyproject.toml. Images are decoded by the runtime, so that each has `cpu` beside it.
TRAIN, PLOTS = "train,cpu", "train,cpu,plots"
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (add_train, "train on images, from nothing or from a checkpoint"),
    "import": (add_import, "read weights of Hugging Face, timm, torchvision or Google"),
    "summary": (add_summary, "layers, shapes, parameters and multiply-adds of a model"),
    "plots": (add_plots, "curves, confusion, filters, attention and mistakes of a run"),
}

if __name__ == "__main__":
    sys.exit(main())
