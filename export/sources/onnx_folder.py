"""The folder that optimum or transformers.js writes: the model, its preprocessing and its labels together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.sources.spec import FIELDS, ForeignError, Spec, read_spec
from vit.pretrained.documents import (
    PREPROCESSOR,
    SourceError,
    labels_of,
    read_json,
    read_preprocessor,
    refuse_other_scores,
)
from vit.pretrained.preprocessing import View, from_preprocessor, from_timm

MODEL = "model.onnx"
CONFIG = "config.json"
SUBFOLDER = "onnx"  # where transformers.js keeps the models, beside which the documents do not lie


@dataclass(frozen=True)
class Described:
    """A foreign model's file with what it wants to see.

    Attributes:
        model: the .onnx file.
        name: what its exports are called.
        spec: what the model wants to see, and its labels.
        assumed: what no document said, a sentence each.
    """

    model: Path
    name: str
    spec: Spec
    assumed: tuple[str, ...] = ()


def describe(source: Path, preprocess: Path | None = None) -> Described:
    """Find the model in a file or folder, and read what it wants to see.

    Args:
        source: an .onnx file, or a folder with `model.onnx` or `onnx/model.onnx`.
        preprocess: a description or a preprocessor_config.json; None to look beside the model.

    Raises:
        ForeignError: where there is no model, no description, or one that cannot be followed.
    """
    model = find_model(source)
    folder = model.parent.parent if model.parent.name == SUBFOLDER else model.parent
    if not (folder / CONFIG).is_file() and (model.parent / CONFIG).is_file():
        folder = model.parent
    name = name_of(model)
    try:
        config = read_json(folder / CONFIG)
        refuse_other_scores(config)
        if preprocess is None:
            document, at = _beside(folder, config, source)
        else:
            document, at = read_json(preprocess), preprocess
            if not preprocess.is_file() or not _is_of_others(document):
                return Described(model, name, read_spec(preprocess))
        view = _view(document, at, str(config.get("model_type") or ""))
        labels, assumed = _labels(config, folder)
    except SourceError as error:
        raise ForeignError(str(error)) from error
    size = _size(config)
    if size is not None and view.preprocess.size != size:
        assumed += (f"images of {_edges(view.preprocess.size)} pixels as {at.name} says, not {_edges(size)}",)
    spec = Spec(view.preprocess, view.mean, view.std, labels)
    return Described(model, name, spec, (*view.assumed, *assumed))


def find_model(source: Path) -> Path:
    """Return the .onnx file that is meant by a file or a folder.

    Raises:
        ForeignError: for a folder with no model, or several of which none is called model.onnx.
    """
    if not source.is_dir():
        return source
    for path in (source / MODEL, source / SUBFOLDER / MODEL):
        if os.path.lexists(path):  # what it is, if no file, is said when it is read
            return path
    found = sorted([*source.glob("*.onnx"), *(source / SUBFOLDER).glob("*.onnx")])
    if len(found) == 1:
        return found[0]
    listed = ", ".join(str(path.relative_to(source)) for path in found) or "no .onnx file"
    raise ForeignError(
        f"{source}: expected {MODEL} or {SUBFOLDER}/{MODEL}, found {listed}; name the .onnx file itself"
    )


def name_of(model: Path) -> str:
    """Return what a model is called: its file, or its folder where the file is just called model.onnx."""
    if model.name != MODEL:
        return model.stem
    folder = Path(os.path.abspath(model)).parent  # noqa: PTH100 (a link of a cache leads to a name by content)
    folder = folder.parent if folder.name == SUBFOLDER else folder
    if folder.parent.name == "snapshots":  # of a model in the hub's cache: models--ORGANIZATION--NAME
        return folder.parent.parent.name.rpartition("--")[2] or model.stem
    return folder.name or model.stem


def _beside(folder: Path, config: Mapping[str, Any], source: Path) -> tuple[Mapping[str, Any], Path]:
    document, file = read_preprocessor(folder)
    if document:
        return document, file
    if config.get("pretrained_cfg"):
        return config, folder / CONFIG
    raise ForeignError(
        f"{source}: expected {PREPROCESSOR} beside the model, found none, and the file does not say what it "
        f"was trained to see; add --preprocess SPEC, JSON with {', '.join(FIELDS)}"
    )


def _is_of_others(document: Mapping[str, Any]) -> bool:
    """Return whether it is a preprocessor_config.json, or a config.json of timm, and no description."""
    known = ("image_processor_type", "feature_extractor_type", "pretrained_cfg", "image_mean", "do_normalize")
    return "preprocess" not in document and any(field in document for field in known)


def _view(document: Mapping[str, Any], file: Path, model_type: str) -> View:
    try:
        if timm := document.get("pretrained_cfg"):
            return from_timm(timm)
        return from_preprocessor(document, model_type)
    except SourceError as error:
        raise ForeignError(f"{file}: the preprocessing cannot be followed ({error})") from error


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names of the classes, or None and a sentence that says so."""
    named = config.get("id2label")
    timm = config.get("pretrained_cfg")
    listed = config.get("label_names") or (timm.get("label_names") if isinstance(timm, Mapping) else None)
    count = len(named) if isinstance(named, Mapping) else len(listed) if isinstance(listed, list) else 0
    labels, guessed = labels_of(config, count)
    if count and not guessed:
        return labels, ()
    return None, (f"the classes' numbers as their labels ({folder / CONFIG} names none)",)


def _size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the model, where config.json says it."""
    found = config.get("image_size")
    if isinstance(found, int):
        return found, found
    if isinstance(found, list) and len(found) == 2 and all(isinstance(size, int) for size in found):
        return found[0], found[1]
    return None


def _edges(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
