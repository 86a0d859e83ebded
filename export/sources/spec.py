"""Description of a foreign model: its preprocessing and its labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from runtime.strict_json import parse_json

Triple = tuple[float, float, float]
FIELDS = ("preprocess", "mean", "std", "labels")


class ForeignError(InputError):
    """A foreign model, or its description, that cannot be used."""


@dataclass(frozen=True)
class Spec:
    """Preprocessing and labels of a foreign model."""

    preprocess: Preprocess
    mean: Triple  # of each channel, for pixels scaled to 0..1
    std: Triple
    labels: tuple[str, ...] | None  # None: the classes are called by their number


def read_spec(path: Path) -> Spec:
    """Read `{"preprocess": {…}, "mean": […], "std": […], "labels": […]}`.

    `preprocess` takes the fields of `runtime.Preprocess`, with its defaults for the others. `mean` and `std`
    are for pixels scaled to 0..1. Without `labels` the classes are called 0, 1, 2, …

    Raises:
        ForeignError: naming the field.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ForeignError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ForeignError(f"{path}: expected a JSON document, found {error}") from error
    if not isinstance(document, dict):
        raise ForeignError(f"{path}: expected a JSON object with {', '.join(FIELDS)}")
    if unknown := sorted(set(document) - set(FIELDS)):
        raise ForeignError(f"{path}: unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if missing := [name for name in ("preprocess", "mean", "std") if name not in document]:
        raise ForeignError(
            f"{path}: it lacks {', '.join(missing)}: what the model was trained to see; look in its "
            "preprocessor_config.json or data config"
        )
    return Spec(
        _preprocess(document["preprocess"], path),
        _triple(document["mean"], "mean", path),
        _triple(document["std"], "std", path),
        _labels(document.get("labels"), path),
    )


def _preprocess(document: Any, path: Path) -> Preprocess:
    if not isinstance(document, Mapping):
        raise ForeignError(
            f"{path}: preprocess must be an object such as {json.dumps(Preprocess().to_dict())}"
        )
    try:
        return Preprocess.from_dict({**Preprocess().to_dict(), **document})
    except (TypeError, ValueError) as error:
        raise ForeignError(f"{path}: preprocess: {error}") from error


def _triple(values: Any, name: str, path: Path) -> Triple:
    numbers = [values] * 3 if _is_number(values) else values
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise ForeignError(f"{path}: {name} must be three numbers, for red, green and blue, found {values!r}")
    if name == "std" and not all(number > 0 for number in numbers):
        raise ForeignError(f"{path}: std must be above 0, found {values!r}")
    if max(map(abs, numbers)) > 1.0:
        raise ForeignError(
            f"{path}: {name} must be for pixels scaled to 0..1, found {values!r}; divide by 255"
        )
    red, green, blue = map(float, numbers)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _labels(values: Any, path: Path) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(label, str) for label in values):
        raise ForeignError(
            f"{path}: labels must be a list of names in the order of the classes; an empty one says that the "
            "model has no classes and gives an embedding"
        )
    return tuple(values)
