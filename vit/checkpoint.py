"""Checkpoints: one safetensors file that holds weights, config, preprocessing, labels and history.

Nothing in the file can execute code when it is read, and a file that was cut off is refused. The second
chapter reads and writes safetensors files of any content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from runtime.images.preprocess import Preprocess
from runtime.text import format_count
from runtime.writing import write_atomically
from vit.config import ConfigError
from vit.document import (
    FILE_NAME,
    FORMAT,
    KEY,
    VERSION,
    CheckpointError,
    Document,
    check_fit,
    check_record,
    check_thresholds,
    checkpoint_name,
    find_checkpoint,
    read_document,
    refuse_incomplete,
)
from vit.model import ViT, compare_shapes

MOST_LISTED = 3  # tensors that do not fit, in a message


@dataclass(frozen=True)
class Checkpoint(Document):
    """A trained model, and its document."""

    model: ViT  # in evaluation mode, on the CPU
    digest: str  # SHA-256 of the file, hexadecimal
    path: Path

    @property
    def name(self) -> str:
        """Name of the run: that of its folder, or of the file if it is not `model.safetensors`."""
        return checkpoint_name(self.path)


def describe_test(recipe: Mapping[str, Any]) -> str:
    """Return the accuracy on the test images in words, or why a checkpoint's recipe has none."""
    if "test_accuracy" in recipe:
        of = f" of {format_count(recipe['test_images'], 'image')}" if "test_images" in recipe else ""
        if "test_map" in recipe:
            names = ("test_map", "test_f1", "test_accuracy")
            ranked, f1, exact = (f"{100 * recipe[name]:.2f} %" for name in names)
            return f"mAP {ranked}, F1 {f1}, {exact}{of} with exactly their labels"
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
    thresholds: Sequence[float] | None = None,
) -> Path:
    """Write a checkpoint; the file at `path` is replaced only when the new one is complete.

    Args:
        path: the file, or a folder.
        model: the model whose weights and config are written.
        preprocess: preprocessing of the images.
        labels: one per class, in the order of the class indices.
        history: one row per epoch.
        recipe: the training recipe.
        finished: False while the run that writes it continues.
        thresholds: one per label, of a model with several labels per image.

    Returns:
        `path`, or `path/model.safetensors` when `path` is a folder or has no suffix.

    Raises:
        CheckpointError: when the labels or the preprocessing do not fit the model, or a row of the history or
            a fact of the recipe would not be read back.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() or not path.suffix else path
    labels, history, recipe = tuple(labels), list(history), dict(recipe or {})
    check_fit(model.config, preprocess, labels)
    try:
        check_record(history, recipe)
        if thresholds is not None:
            check_thresholds(list(thresholds), len(labels))
    except ValueError as error:
        raise CheckpointError(f"{path}: it is not written: {error}") from error
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_dict(),
        "preprocess": preprocess.to_dict(),
        "labels": labels,
        "history": history,
        "recipe": recipe,
        "finished": finished,
        **({} if thresholds is None else {"thresholds": list(thresholds)}),
    }
    write_tensors(path, model.state_dict(), {KEY: json.dumps(document, allow_nan=False)})
    return path


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: its file, or the folder that holds `model.safetensors`.

    Returns:
        The model in evaluation mode, with all facts about it.

    Raises:
        CheckpointError: naming the file, what is wrong with it and what to do.
    """
    file = find_checkpoint(path)
    found = read_document(file)
    try:
        missing, left_over, unfit = compare_shapes(found.config, read_shapes(file))
    except ConfigError as error:
        raise CheckpointError(f"{file}: the weights do not fit the config in the file: {error}") from error
    unfit += [f"{name} is missing" for name in missing] + [f"{name} is left over" for name in left_over]
    if unfit:
        first, more = "; ".join(unfit[:MOST_LISTED]), ", …" * (len(unfit) > MOST_LISTED)
        raise CheckpointError(f"{file}: the weights do not fit the config in the file: {first}{more}")
    tensors, _ = read_tensors(file)
    model = ViT(found.config)
    model.load_state_dict(tensors)
    del tensors  # as large as the model
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Checkpoint(**vars(found), model=model.eval(), digest=digest, path=file)


# --- Safetensors files ---


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, which appears under its name only when it is complete on the disk."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_atomically(path, data)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors, in any order, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata; refuse an incomplete file."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            # Copied: the file may be replaced while the tensors are in use.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        refuse_incomplete(file, error)


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors file, without reading their values."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        refuse_incomplete(file, error)
