"""The JSON documents beside a model of another project. No torch here: ONNX models have them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.strict_json import parse_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of models that take text too, since transformers 5


class SourceError(InputError):
    """Weights that cannot be read or do not fit; the message says which and what was expected."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when there is no such file; a link that leads nowhere is an error."""
    if not file.is_file():
        if file.is_symlink():
            raise SourceError(f"{file}: a link to a file that is not there; load the model again")
        return {}
    try:
        document = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: not a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise SourceError(f"{file}: expected a JSON object, found {type(document).__name__}")
    return document


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], Path]:
    """Read the preprocessing that a folder of transformers describes, empty for none, and name its file."""
    file, newer = folder / PREPROCESSOR, folder / PROCESSOR
    if document := read_json(file):
        return document, file
    inner = read_json(newer).get("image_processor")
    return (inner, newer) if isinstance(inner, dict) else ({}, file)


def labels_of(described: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """The names of the classes, or their numbers."""
    named = described.get("id2label")
    inverse = described.get("label2id")
    if not named and isinstance(inverse, Mapping):
        named = {str(index): name for name, index in inverse.items()}
    if isinstance(named, Mapping) and len(named) == classes and all(str(i) in named for i in range(classes)):
        return tuple(str(named[str(i)]) for i in range(classes)), []
    listed = named if isinstance(named, list) else described.get("label_names")
    listed = listed or (described.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(listed, list) and len(listed) == classes:
        return tuple(map(str, listed)), []
    unfit = f"; config.json names {len(named)}, which are not 0 to {classes - 1}" if named else ""
    guessed = [f"the class indices, 0 to {classes - 1}, as their labels{unfit} (--labels FILE names them)"]
    return tuple(map(str, range(classes))), guessed if classes else []
