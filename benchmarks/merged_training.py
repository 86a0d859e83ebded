"""Training with merged tokens: what it gives back of what merging takes, on Fashion-MNIST."""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import command, environment, positive, table
from calibration.graph import Array
from runtime.images.preprocess import Preprocess
from vit.checkpoint import load_checkpoint
from vit.config import ViTConfig
from vit.data.batches import Store
from vit.data.training import TrainingData, open_data, targets_of
from vit.merging import merge_tokens
from vit.model import ViT, new_model
from vit.schedule import middle_schedule
from vit.training.evaluate import predict
from vit.training.recipe import Recipe
from vit.training.train import train

CONFIG = ViTConfig(image_size=(28, 28), patch_size=4, width=64, depth=6, heads=2, mlp_width=256, classes=10)
BATCH = 100  # images, when judged
RECIPE = Recipe(name="dense", epochs=4, batch=128, lr=2e-3, holdout=0.0, flip=True, ema=0.99)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    data = open_data(options.data, holdout=0.0)
    preprocess = Preprocess(size=CONFIG.image_size, resize="stretch", interpolation="bilinear")
    assert data.test is not None  # the data sets with a test split of their own have one
    test, targets = Store(data.test, preprocess), targets_of(data.test)
    dense = _trained(replace(RECIPE, epochs=options.epochs), new_model(CONFIG, 0), data, preprocess)
    more = replace(RECIPE, name="more", epochs=options.more, lr=RECIPE.lr / 4)
    rows = [("dense", *_top1(dense, test, targets, options.merge_tokens))]
    for name, merged in (("trained on, dense", 0), ("trained on, merging", options.merge_tokens)):
        model = _trained(replace(more, merge_tokens=merged), copy.deepcopy(dense), data, preprocess)
        rows.append((name, *_top1(model, test, targets, options.merge_tokens)))
    print(f"`{command()}`\n\n{environment()}.\n")
    print(table(("", "top-1 %", f"top-1 %, {options.merge_tokens} tokens merged per block"), rows))
    return 0


def _trained(recipe: Recipe, model: ViT, data: TrainingData, preprocess: Preprocess) -> ViT:
    with tempfile.TemporaryDirectory() as folder:
        path = train(recipe, model=model, data=data, preprocess=preprocess, out=Path(folder), device="cpu")
        return load_checkpoint(path).model


def _top1(model: ViT, test: Store, targets: Array, merged: int) -> tuple[str, str]:
    """Top-1 of the plain model and of the same weights with merging, on the test images."""
    merging = merge_tokens(copy.deepcopy(model), middle_schedule(model.config, merged))
    plain, fewer = (100 * float((_labels(each, test) == targets).mean()) for each in (model, merging))
    return f"{plain:.2f}", f"{fewer:.2f}"


def _labels(model: ViT, test: Store) -> Array:
    found = predict(model, test, np.arange(len(test)), torch.device("cpu"), BATCH)
    return np.concatenate([logits.argmax(-1).numpy() for _, logits, _ in found])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merged_training", description=__doc__)
    add = parser.add_argument
    add("--data", default="fashion-mnist", help="images with a test split (default: %(default)s)")
    add("--epochs", type=positive, default=RECIPE.epochs, help="of the dense model (default: %(default)s)")
    add(
        "--more", type=positive, default=2, help="epochs after that, dense and merging (default: %(default)s)"
    )
    add("--merge-tokens", type=positive, default=10, metavar="R", help="per block (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
