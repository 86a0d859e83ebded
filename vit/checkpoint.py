"""Checkpoints: one safetensors file that holds weights, config, preprocessing, labels and history.

Nothing in the file can execute code when it is read, and a file that was cut off is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.images.preprocess import Preprocess
from runtime.text import flaw
from vit.config import ConfigError, ViTConfig
from vit.model import ViT
from vit.tensors import CheckpointError, read_tensors, write_tensors

FILE_NAME = "model.safetensors"
FORMAT = "vit-edge checkpoint"
VERSION = 1
KEY = "vit_edge"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what belongs to it.

    `history` has one dictionary an epoch (the rows of metrics.csv), `recipe` says how the model was
    trained or where it came from, `digest` is the SHA-256 of the file. `finished` is False for the best epoch
    so far of a run that was interrupted, or is still going on.
    """

    model: ViT  # in eval mode, on the CPU
    preprocess: Preprocess
    labels: tuple[str, ...]
    history: list[dict[str, Any]]
    recipe: dict[str, Any]
    digest: str
    path: Path
    finished: bool = True

    @property
    def name(self) -> str:
        """Name of the run: its folder, or the file where that has a name of its own."""
        path = Path(os.path.abspath(self.path))  # noqa: PTH100 (links stay as they were typed)
        return path.parent.name if path.name == FILE_NAME else path.stem


def result_of_test(recipe: Mapping[str, Any]) -> str:
    """Return what the test images said of a run, in words that are the same wherever it is told.

    Args:
        recipe: as in the checkpoint.
    """
    if "test_accuracy" in recipe:
        of = f" of {recipe['test_images']} images" if "test_images" in recipe else ""
        return f"{100 * recipe['test_accuracy']:.2f} %{of} right"
    why = (
        "the weights were imported"
        if "imported" in recipe
        else "there were no test images with known classes"
    )
    return f"not measured, {why}"


def save_checkpoint(
    path: Path | str,
    *,
    model: ViT,
    preprocess: Preprocess,
    labels: Iterable[str],
    history: Iterable[Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write a checkpoint; the file at `path` is replaced only when the new one is complete.

    Args:
        path: the file, or a folder.
        model: the model whose weights and config are written.
        preprocess: preprocessing of the images.
        labels: one per class, in the order of the class indices.
        history: one row per epoch.
        recipe: the training recipe.
        finished: False while the run that writes it goes on.

    Returns:
        `path`, or `path/model.safetensors` when `path` is a folder or has no suffix.

    Raises:
        CheckpointError: when the labels or the preprocessing do not fit the model.
    """
    path = checkpoint_file(path)
    labels = tuple(labels)
    check_fit(model.config, preprocess, labels)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_dict(),
        "preprocess": preprocess.to_dict(),
        "labels": labels,
        "history": list(history),
        "recipe": dict(recipe or {}),
        "finished": finished,
    }
    write_tensors(path, model.state_dict(), {KEY: json.dumps(document, allow_nan=False)})
    return path


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint from its file, or from the folder that holds `model.safetensors`.

    Raises:
        CheckpointError: naming the file, what is wrong with it and what to do.
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise CheckpointError(
            f"{file}: no checkpoint here; `python -m vit train` or `python -m vit import` make one"
        )
    tensors, metadata = read_tensors(file)
    try:
        document = json.loads(metadata[KEY])
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise CheckpointError(f"{file}: expected {FORMAT} version {VERSION}, found {document['version']}")
        config = ViTConfig.from_dict(document["config"])
        preprocess = Preprocess.from_dict(document["preprocess"])
        labels = tuple(str(label) for label in document["labels"])
        history, recipe = list(document["history"]), dict(document["recipe"])
        finished = bool(document.get("finished", True))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        hint = "weights of another project are read by `python -m vit import`"
        raise CheckpointError(f"{file}: not a checkpoint of vit-edge ({flaw(error)}); {hint}") from error
    model = ViT(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: the weights do not fit the config in the file: {error}") from error
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Checkpoint(model.eval(), preprocess, labels, history, recipe, digest, file, finished)


def check_fit(config: ViTConfig, preprocess: Preprocess, labels: tuple[str, ...]) -> None:
    if len(labels) != config.classes:
        raise CheckpointError(f"the model has {config.classes} classes and there are {len(labels)} labels")
    if tuple(preprocess.size) != tuple(config.image_size):
        raise CheckpointError(
            f"the model takes {config.image_size} pixels, preprocessing gives {preprocess.size}"
        )


def checkpoint_file(path: Path | str) -> Path:
    path = Path(path)
    return path / FILE_NAME if path.is_dir() or not path.suffix else path
