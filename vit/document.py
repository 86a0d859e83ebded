"""The document in a checkpoint: config, preprocessing, labels, history and recipe; read without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from runtime.command.file_kinds import detect_file_kind
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from runtime.strict_json import parse_json
from runtime.text import describe_error, format_count
from vit.config import ViTConfig, is_number

FILE_NAME = "model.safetensors"
FORMAT = "vit-edge checkpoint"
VERSION = 1
KEY = "vit_edge"
MAKE = "`python -m vit train` or `python -m vit import` make one"


def _is_list(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


# Fields of a recipe that programs read → their check; all other fields are for people.
RECIPE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("test_accuracy", "test_map", "test_f1"), _is_share),
    "test_images": lambda value: isinstance(value, int) and value >= 0,
    **dict.fromkeys(
        ("data", "imported", "source", "from", "from_name", "head", "plan"),
        lambda value: isinstance(value, str),
    ),
    "trained_on": lambda value: _is_list(value, str),
    "center": lambda value: _is_list(value, float) and all(map(is_number, value)),
    "recipe": lambda value: isinstance(value, dict),
    "images": lambda value: (
        isinstance(value, dict) and all(each is None or is_number(each) for each in value.values())
    ),
}


class CheckpointError(InputError):
    """A file that is no checkpoint, or one that is incomplete; the message says which and what to do."""


@dataclass(frozen=True)
class Document:
    """Facts about a model beside its weights."""

    config: ViTConfig
    preprocess: Preprocess
    labels: tuple[str, ...]  # one per class, in the order of the class indices
    history: list[dict[str, Any]]  # one row per epoch, as in metrics.csv
    recipe: dict[str, Any]  # how the model was trained, or where it came from
    finished: bool  # False for the best epoch so far of a run that was interrupted or still continues
    # One per label, 0 to 1, of a model with several labels per image; None: one label per image.
    thresholds: tuple[float, ...] | None = field(default=None, kw_only=True)


def checkpoint_name(file: Path) -> str:
    """Return the name of a run.

    Args:
        file: of a checkpoint; `model.safetensors` is named after its folder, another file after itself.
    """
    path = Path(os.path.abspath(file))  # noqa: PTH100 (links stay as they were typed)
    return path.parent.name if path.name == FILE_NAME else path.stem


def find_checkpoint(path: Path | str) -> Path:
    """Return the file of a checkpoint.

    Args:
        path: the file, or the folder that holds `model.safetensors`.

    Raises:
        CheckpointError: if there is no such file.
    """
    file = Path(path)
    beside = ""
    if file.is_dir():
        beside = f" ({file} is {detect_file_kind(file)[1]}, not that of a run)"
        file = file / FILE_NAME
    if not file.is_file():
        raise CheckpointError(f"{file}: no checkpoint here{beside}; {MAKE}")
    return file


def read_document(path: Path | str) -> Document:
    """Return the document of a checkpoint, without reading its weights.

    Args:
        path: the file, or the folder that holds `model.safetensors`.

    Raises:
        CheckpointError: naming the file, what is wrong with it and what to do.
    """
    file = find_checkpoint(path)
    return parse_document(file, read_header(file))


def read_header(file: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; checks its size, and reads no tensors."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        refuse_incomplete(file, error)


def parse_document(file: Path, metadata: Mapping[str, str]) -> Document:
    """Return the document in the metadata of a safetensors file; `file` is named in errors."""
    try:
        document = parse_json(metadata[KEY])
        version = document["version"]
        if document["format"] != FORMAT or version != VERSION or isinstance(version, bool):
            raise CheckpointError(f"{file}: expected {FORMAT} version {VERSION}, found {version!r:.60}")
        config = ViTConfig.from_dict(document["config"])
        preprocess = Preprocess.from_dict(document["preprocess"])
        labels, history, recipe = (document[name] for name in ("labels", "history", "recipe"))
        finished = document.get("finished", True)
        if not _is_list(labels, str):
            raise ValueError(f"labels is {labels!r:.60}")
        if not isinstance(finished, bool):
            raise ValueError(f"finished is {finished!r:.60}")
        check_record(history, recipe)
        thresholds = document.get("thresholds")
        if thresholds is not None:
            thresholds = check_thresholds(thresholds, len(labels))
        found = Document(config, preprocess, tuple(labels), history, recipe, finished, thresholds=thresholds)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        hint = "weights of another project are read by `python -m vit import`"
        raise CheckpointError(
            f"{file}: not a checkpoint of vit-edge ({describe_error(error):.300}); {hint}"
        ) from error
    try:
        check_fit(found.config, found.preprocess, found.labels)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return found


def check_record(history: Any, recipe: Any) -> None:
    """Check the record of the training in a checkpoint; a `ValueError` names a field of another type."""
    if not is_history(history):
        raise ValueError(f"history is {history!r:.60}, expected one row of numbers per epoch, counted from 1")
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe is {recipe!r:.60}, expected an object")
    for name, accepts in RECIPE.items():
        if name in recipe and not accepts(recipe[name]):
            raise ValueError(f"recipe: {name} is {recipe[name]!r:.60}")


def check_thresholds(value: Any, labels: int) -> tuple[float, ...]:
    """Return the thresholds of a model with several labels per image; a `ValueError` says what is wrong."""
    if not _is_list(value, (int, float)) or len(value) != labels or not all(map(_is_share, value)):
        raise ValueError(f"thresholds is {value!r:.60}, expected one number from 0 to 1 per label")
    return tuple(value)


def is_history(value: Any) -> bool:
    """Return whether it holds one row per epoch, counted from 1: the same numbers by their names in each."""
    if not _is_list(value, dict):
        return False
    names = {"epoch", *(value[0] if value else ())}
    return all(
        set(row) == names and row["epoch"] == epoch and all(map(is_number, row.values()))
        for epoch, row in enumerate(value, 1)
    )


def check_fit(config: ViTConfig, preprocess: Preprocess, labels: tuple[str, ...]) -> None:
    """Refuse labels and preprocessing of another model."""
    if len(labels) != config.classes:
        expected = f"{format_count(config.classes, 'label')}, one per class of the model"
        raise CheckpointError(f"expected {expected}, found {len(labels)}")
    if preprocess.size != config.image_size:
        found = f"preprocessing gives {preprocess.size}"
        raise CheckpointError(f"the model takes {config.image_size} pixels, {found}")


def refuse_incomplete(file: Path, error: Exception) -> NoReturn:
    """Raise the error of a file that is no safetensors file, or is cut off: what it is and what to do."""
    kind, words = detect_file_kind(file)
    if kind not in ("safetensors", "unknown"):
        advice = {
            "onnx": f"label images with it (python -m runtime {file} IMAGES), or, if another project made "
            f"it, quantize it (python -m export --onnx {file})",
            "image": f"give the run of a training; {MAKE}",
        }.get(kind, f"give a run or its model.safetensors; {MAKE}")
        cut = "not a complete safetensors file: " if file.suffix == ".safetensors" else ""
        raise CheckpointError(f"{file}: {cut}expected a checkpoint, found {words}; {advice}") from error
    raise CheckpointError(
        f"{file}: not a complete safetensors file ({error}); make or copy it again"
    ) from error
