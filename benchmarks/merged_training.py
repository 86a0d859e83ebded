"""Training with merged tokens: what it gives back of what merging takes."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import command, environment, positive, table
from calibration.graph.edit import Array
from runtime.command.line import run_command
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from runtime.writing import temporary_folder
from vit.checkpoint import load_checkpoint
from vit.config import ViTConfig, merge_schedule
from vit.data.batches import Store
from vit.data.training_images import TrainingData, open_data, targets_of
from vit.model import ViT, new_model
from vit.token_merging import set_merging
from vit.training.evaluate import predict_logits
from vit.training.recipe import Recipe, RecipeError
from vit.training.train import train

CONFIG = ViTConfig(image_size=(28, 28), patch_size=4, width=64, depth=6, heads=2, mlp_width=256, classes=10)
BATCH = 50  # images, when judged
RECIPE = Recipe(name="dense", epochs=4, batch=128, lr=2e-3, holdout=0.0, flip=True, ema=0.99)


@dataclass(frozen=True)
class Start:
    """A trained dense model, and how it was trained."""

    model: ViT
    recipe: Recipe
    preprocess: Preprocess


@dataclass(frozen=True)
class Judge:
    """Test images, and the labels that the dense model gave them before any further training."""

    images: Store
    targets: Array
    dense: Array
    merged: int  # tokens per middle block

    def row(self, name: str, model: ViT) -> tuple[str, ...]:
        """Return a row of the table: top-1 and loss of a model without merging and with it."""
        merging = set_merging(copy.deepcopy(model), merge_schedule(model.config, self.merged))
        cells = []
        for each in (model, merging):
            logits = _logits(each, self.images)
            labels = logits.argmax(-1).numpy()
            loss = float(cross_entropy(logits, torch.from_numpy(self.targets)))
            right, same = (100 * float((labels == other).mean()) for other in (self.targets, self.dense))
            cells += [f"{right:.2f}", f"{same:.2f}", f"{loss:.4f}"]
        return (name, *cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    return run_command("benchmarks.merged_training", lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    """Train on from one dense model, dense and with merging, and print how each is judged."""
    data = open_data(options.data, holdout=0.0)
    if data.test is None:
        raise InputError(f"{options.data}: expected images with a test split, found none")
    start = _checkpoint(options.checkpoint) if options.checkpoint else _fresh(options.epochs, data)
    test = Store(data.test, start.preprocess)
    judge = Judge(
        test, targets_of(data.test), _logits(start.model, test).argmax(-1).numpy(), options.merge_tokens
    )
    rows = [judge.row("dense", start.model)]
    more = replace(start.recipe, name="more", epochs=options.more, lr=start.recipe.lr / 4)
    for name, merged in (("trained on, dense", 0), ("trained on, merging", options.merge_tokens)):
        again = replace(start, recipe=replace(more, merge_tokens=merged), model=copy.deepcopy(start.model))
        rows.append(judge.row(name, _trained(again, data, teacher=start.model)))
    print(f"`{command()}`\n\n{environment()}.\n")
    print(f"Dense, and with {options.merge_tokens} tokens merged per block; {len(test):,} test images.\n")
    heads = ("top-1 %", "same label %", "loss")
    print(table(("", *heads, *(f"merged: {head}" for head in heads)), rows))
    return 0


def _checkpoint(path: Path) -> Start:
    found = load_checkpoint(path)
    if "recipe" not in found.recipe:
        raise RecipeError(f"{path}: expected a checkpoint of python -m vit train, found imported weights")
    recipe = Recipe.from_dict(found.recipe["recipe"])
    return Start(found.model, replace(recipe, merge_tokens=0, early_stop=0), found.preprocess)


def _fresh(epochs: int, data: TrainingData) -> Start:
    preprocess = Preprocess(size=CONFIG.image_size, resize="stretch", interpolation="bilinear")
    start = Start(new_model(CONFIG, 0), replace(RECIPE, epochs=epochs), preprocess)
    return replace(start, model=_trained(start, data))


def _trained(start: Start, data: TrainingData, teacher: ViT | None = None) -> ViT:
    with temporary_folder() as folder:
        path = train(
            start.recipe,
            model=start.model,
            data=data,
            preprocess=start.preprocess,
            out=folder,
            device="cpu",
            teacher=teacher,
        )
        return load_checkpoint(path).model


def _logits(model: ViT, test: Store) -> torch.Tensor:
    found = predict_logits(model, test, np.arange(len(test)), torch.device("cpu"), BATCH)
    return torch.cat([logits.float() for _, logits, _ in found])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merged_training", description=__doc__)
    add = parser.add_argument
    add("--data", default="fashion-mnist", help="images with a test split (default: %(default)s)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--checkpoint",
        type=Path,
        help="trained on those images, to start from (default: a small ViT is trained)",
    )
    start.add_argument(
        "--epochs", type=positive, default=RECIPE.epochs, help="of that small ViT (default: %(default)s)"
    )
    add(
        "--more", type=positive, default=2, help="epochs after that, dense and merging (default: %(default)s)"
    )
    add("--merge-tokens", type=positive, default=10, metavar="R", help="per block (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
