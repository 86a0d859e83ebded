"""Description of an ONNX model: its preprocessing and its labels.

It is a JSON file of its own (`--preprocess`), or the documents in the folder that optimum or transformers.js
writes: config.json and preprocessor_config.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from vit.config import is_number
from vit.pretrained.description import (
    PREPROCESSOR,
    THRESHOLD,
    THRESHOLD_ASSUMED,
    SourceError,
    choose_labels,
    gives_several_labels,
    is_whole,
    read_json,
    read_preprocessor,
)
from vit.pretrained.hub import name_snapshot
from vit.pretrained.preprocessing import View, read_pretrained_cfg, read_processor

Triple = tuple[float, float, float]
FIELDS = ("preprocess", "mean", "std", "labels", "thresholds")
MODEL = "model.onnx"
CONFIG = "config.json"
SUBFOLDER = "onnx"  # where transformers.js keeps the models, beside which the documents do not lie


class OnnxModelError(InputError):
    """An ONNX model, or its description, that cannot be used."""


@dataclass(frozen=True)
class OnnxDescription:
    """Preprocessing and labels of an ONNX model."""

    preprocess: Preprocess
    mean: Triple  # of each channel, for pixels scaled to 0..1
    std: Triple
    labels: tuple[str, ...] | None  # None: the classes are called by their number
    # Of each label, or of all, 0 to 1: the model gives several labels per image; None: one by softmax.
    thresholds: tuple[float, ...] | float | None = None


@dataclass(frozen=True)
class DescribedModel:
    """The file of an ONNX model with its description."""

    file: Path
    name: str  # of its exports
    description: OnnxDescription
    assumed: tuple[str, ...] = ()  # what no document states, one sentence each


def read_description(path: Path) -> OnnxDescription:
    """Read `{"preprocess": {…}, "mean": […], "std": […], "labels": […]}` from a JSON file.

    `preprocess` takes the fields of `runtime.Preprocess`, with its defaults for the others. `mean` and `std`
    are for pixels scaled to 0..1. Without `labels` the classes are called 0, 1, 2, … With `thresholds`, a
    number from 0 to 1 or one per label, an image has each label whose sigmoid reaches its threshold.

    Raises:
        OnnxModelError: naming the field.
    """
    try:
        return _parse(read_json(path, required=True), path)
    except SourceError as error:
        raise OnnxModelError(str(error)) from error


def _parse(document: Mapping[str, Any], path: Path) -> OnnxDescription:
    if unknown := sorted(set(document) - set(FIELDS)):
        raise OnnxModelError(f"{path}: unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if missing := [name for name in ("preprocess", "mean", "std") if name not in document]:
        raise OnnxModelError(
            f"{path}: it lacks {', '.join(missing)}: the preprocessing that the model was trained with; look "
            "in its preprocessor_config.json or data config"
        )
    fields, labels = document["preprocess"], document.get("labels")
    if not isinstance(fields, Mapping):
        raise OnnxModelError(
            f"{path}: preprocess must be an object such as {json.dumps(Preprocess().to_dict())}"
        )
    try:
        preprocess = Preprocess.from_dict({**Preprocess().to_dict(), **fields})
    except (TypeError, ValueError) as error:
        raise OnnxModelError(f"{path}: preprocess: {error}") from error
    names = [] if labels is None else labels
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise OnnxModelError(
            f"{path}: labels must be a list of names in the order of the classes; an empty one says that the "
            "model has no classes and gives an embedding"
        )
    mean, std = (_parse_channels(document[name], name, path) for name in ("mean", "std"))
    thresholds = document.get("thresholds")
    several = thresholds if isinstance(thresholds, list) else [] if thresholds is None else [thresholds]
    if (several and labels == []) or not all(is_number(each) and 0 <= each <= 1 for each in several):
        raise OnnxModelError(f"{path}: thresholds must be from 0 to 1, one number or one per label")
    thresholds = tuple(thresholds) if isinstance(thresholds, list) else thresholds
    return OnnxDescription(preprocess, mean, std, None if labels is None else tuple(labels), thresholds)


def _parse_channels(values: Any, name: str, path: Path) -> Triple:
    numbers = [values] * 3 if is_number(values) else values
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(is_number, numbers)):
        raise OnnxModelError(
            f"{path}: {name} must be three numbers, for red, green and blue, found {values!r}"
        )
    if name == "std" and not all(number > 0 for number in numbers):
        raise OnnxModelError(f"{path}: std must be above 0, found {values!r}")
    if max(map(abs, numbers)) > 1.0:
        raise OnnxModelError(
            f"{path}: {name} must be for pixels scaled to 0..1, found {values!r}; divide by 255"
        )
    red, green, blue = map(float, numbers)
    return red, green, blue


def describe_onnx(source: Path, preprocess: Path | None = None) -> DescribedModel:
    """Find the model in a file or folder, and read its description.

    Args:
        source: an .onnx file, or a folder with `model.onnx` or `onnx/model.onnx`.
        preprocess: a description or a preprocessor_config.json; None to look beside the model.

    Raises:
        OnnxModelError: where there is no model, no description, or one that cannot be followed.
    """
    file = find_onnx(source)
    folder = file.parent.parent if file.parent.name == SUBFOLDER else file.parent
    if not (folder / CONFIG).is_file() and (file.parent / CONFIG).is_file():
        folder = file.parent
    try:
        config = read_json(folder / CONFIG)
        several = gives_several_labels(config)
        if preprocess is None:
            document, at = _read_beside(folder, config, source)
        else:
            document, at = read_json(preprocess, required=True), preprocess
            if not _is_of_another_project(document):
                found = _parse(document, preprocess)
                if several and found.thresholds is None:
                    found = replace(found, thresholds=THRESHOLD)
                return DescribedModel(file, name_onnx(file), found)
        view = _read_view(document, at, str(config.get("model_type") or ""))
    except SourceError as error:
        raise OnnxModelError(str(error)) from error
    labels, guessed = choose_labels(config)
    named, assumed = None if guessed or not labels else labels, list(view.assumed)
    if named is None:
        assumed.append(f"the classes' numbers as their labels ({folder / CONFIG} names none)")
    if several:
        assumed.append(THRESHOLD_ASSUMED)
    size, expected = view.preprocess.size, _image_size(config)
    if expected is not None and size != expected:
        shown, other = (f"{height}×{width}" for height, width in (size, expected))
        assumed.append(f"images of {shown} pixels as {at.name} says, not {other}")
    thresholds = THRESHOLD if several else None
    description = OnnxDescription(view.preprocess, view.mean, view.std, named, thresholds)
    return DescribedModel(file, name_onnx(file), description, tuple(assumed))


def find_onnx(source: Path) -> Path:
    """Return the .onnx file of a folder; anything else as it is.

    Raises:
        OnnxModelError: for a folder with no model, or several of which none is called model.onnx.
    """
    if not source.is_dir():
        return source
    inside = (*source.glob("*.onnx"), *(source / SUBFOLDER).glob("*.onnx"))
    found = choose_onnx([path.relative_to(source).as_posix() for path in inside])
    if len(found) == 1:  # what it is, if no file, is found when it is read
        return source / found[0]
    listed = ", ".join(found) or "no .onnx file"
    raise OnnxModelError(
        f"{source}: expected {MODEL} or {SUBFOLDER}/{MODEL}, found {listed}; name the .onnx file itself"
    )


def choose_onnx(names: Collection[str]) -> list[str]:
    """Return the usual model among the names of a folder's files; without one, all that may be it.

    Args:
        names: relative to the folder, with / between their parts.
    """
    usual = [name for name in (MODEL, f"{SUBFOLDER}/{MODEL}") if name in names]
    places = ("", SUBFOLDER)
    models = (name for name in names if name.endswith(".onnx") and name.rpartition("/")[0] in places)
    return usual[:1] or sorted(models)


def name_onnx(file: Path) -> str:
    """Return the name of a model: its file's, or its folder's where the file is just called model.onnx."""
    if file.name != MODEL:
        return file.stem
    folder = Path(os.path.abspath(file)).parent  # noqa: PTH100 (a link of a cache leads to a name by content)
    folder = folder.parent if folder.name == SUBFOLDER else folder
    return name_snapshot(folder) or folder.name or file.stem


def _read_beside(folder: Path, config: Mapping[str, Any], source: Path) -> tuple[Mapping[str, Any], Path]:
    document, file = read_preprocessor(folder)
    if document:
        return document, file
    if config.get("pretrained_cfg"):
        return config, folder / CONFIG
    raise OnnxModelError(
        f"{source}: expected {PREPROCESSOR} beside the model, found none, and the file does not say how its "
        f"images are prepared; add --preprocess SPEC, JSON with {', '.join(FIELDS)}"
    )


def _is_of_another_project(document: Mapping[str, Any]) -> bool:
    """Return whether it is a preprocessor_config.json, or a config.json of timm, and no description."""
    processor = ("image_processor_type", "feature_extractor_type", "image_mean", "do_normalize")
    named = any(field in document for field in (*processor, "pretrained_cfg"))
    return named and "preprocess" not in document


def _read_view(document: Mapping[str, Any], file: Path, model_type: str) -> View:
    try:
        timm = document.get("pretrained_cfg")
        return read_pretrained_cfg(timm) if timm else read_processor(document, model_type)
    except SourceError as error:
        raise OnnxModelError(f"{file}: the preprocessing cannot be followed ({error})") from error


def _image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of the model, where config.json has it."""
    found = config.get("image_size")
    edges: list[Any] = found if isinstance(found, list) else [found] * 2
    return (edges[0], edges[1]) if len(edges) == 2 and all(map(is_whole, edges)) else None
