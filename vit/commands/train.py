"""python -m vit train."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from runtime.command.parser import natural, number, positive
from runtime.command.progress import tell
from runtime.writing import check_folder
from vit.training.scalars import check_tensorboard

if TYPE_CHECKING:
    from vit.training.setup import Checked, TrainOptions


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
    add(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where to train (default: auto, a GPU if there is one)",
    )
    add("--tensorboard", action="store_true", help="also write OUT/tensorboard")
    add(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="continue the interrupted run in OUT; auto: or begin one (for torchrun --max-restarts)",
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
        help="checkpoint to start from; it gets a new head for the new classes",
    )
    add(
        "--preset",
        help="scratch, finetune, probe (a new head on frozen features), or an example: digits, fashion, "
        "fashion-quick (default: finetune with --from, digits with --data digits, else scratch)",
    )
    add(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="input resolution; position embeddings of --from are interpolated (default: of the model)",
    )
    add(
        "--white-level",
        type=int,
        metavar="N",
        help="value of a 16-bit gray pixel that is white; 4095 for 12-bit data",
    )
    add(
        "--patch-size",
        type=positive,
        metavar="PIXELS",
        help="edge of a patch, for a model with random weights",
    )
    add("--teacher", type=Path, help="checkpoint with the same classes to distill from")


def _add_recipe_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--epochs", type=positive, help="number of epochs (default: of the preset)")
    add(
        "--batch",
        type=positive,
        help="images per step, of all processes together (default: of the preset, or fewer for few images)",
    )
    add("--lr", type=number(0, above=True), help="highest learning rate (default: of the preset)")
    add("--seed", type=natural, help="seed of weights, order and augmentation (default: of the preset)")
    add(
        "--merge-tokens",
        type=natural,
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
        help="change any field of the recipe, for example --set mixup=0.2; may be repeated; the run prints "
        "all fields at its start",
    )


def run_train(options: argparse.Namespace) -> None:
    from vit.data.datasets import refuse_among_classes
    from vit.run_folder import STATE, is_first_process, open_run_folder, write_alone
    from vit.training.setup import TrainOptions, check

    names = {field.name for field in fields(TrainOptions)}
    given = TrainOptions(**{name: value for name, value in vars(options).items() if name in names})
    if options.tensorboard:
        check_tensorboard()
    if not (options.resume and (options.out / STATE).exists()):
        refuse_among_classes(options.out, options.data)
    checked = check(given)
    check_folder(options.out)
    with write_alone(options.out):
        resume = open_run_folder(options.out, resume=options.resume, overwrite=options.overwrite, report=tell)
        path = _train(options, given, checked, resume=resume)
    if is_first_process():
        _say_what_next(options, path)
    print(path)


def _train(options: argparse.Namespace, given: TrainOptions, checked: Checked, *, resume: bool) -> Path:
    from vit.training.setup import prepare

    run = prepare(given, checked)
    tell(f"images: {run.data.describe()}")
    for sentence in run.data.notes:
        tell(f"note: {sentence}")
    tell(f"recipe: {json.dumps(run.recipe.to_dict())}")
    from vit.training.train import train

    return train(
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
        report=tell,
    )


def _say_what_next(options: argparse.Namespace, path: Path) -> None:
    """Print which epoch was kept, and the command to type next."""
    from vit.document import read_document
    from vit.training.evaluate import describe_kept

    document = read_document(path)
    tell(describe_kept(document.history, document.recipe["images"].get("val")))
    out, data = quote(str(options.out)), quote(options.data)
    tell(f"next: python -m export {out} --quantize --calibration {data}")
