"""The JSON documents beside a model of another project. No torch here: ONNX models have them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.strict_json import parse_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of models that take text too, since transformers 5


ONE_CLASS = (
    "it has one output, and a softmax over one class is 1.0 for every image: a model of two classes with a "
    "sigmoid, or of a number (regression); train it with one output per class, both of two included"
)
OTHER_SCORES = {
    "multi_label_classification": "a multi-label model scores each class for itself, with a sigmoid",
    "regression": "a regression model gives numbers, no classes",
}


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


def refuse_other_scores(config: Mapping[str, Any]) -> None:
    """Refuse a model whose config.json says that its outputs are not the logits of classes.

    Raises:
        SourceError: naming the problem type, or the function that makes scores of the outputs.
    """
    applied = config.get("function_to_apply")  # as the pipelines of transformers read it
    if applied not in (None, "", "softmax"):
        raise SourceError(
            f"function_to_apply is {applied!r:.60} in config.json; this project's scores are a softmax over "
            "the classes"
        )
    said = config.get("problem_type")
    if said not in (None, "", "single_label_classification"):
        meaning = OTHER_SCORES.get(str(said), "its outputs are not known here")
        raise SourceError(
            f"problem_type is {said!r:.60} in config.json: {meaning}; this project's scores are a softmax "
            "over the classes"
        )


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], Path]:
    """Read the preprocessing that a folder of transformers describes, empty for none, and name its file."""
    file, newer = folder / PREPROCESSOR, folder / PROCESSOR
    if document := read_json(file):
        return document, file
    inner = read_json(newer).get("image_processor")
    return (inner, newer) if isinstance(inner, dict) else ({}, file)


def labels_of(described: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """The names of the classes, or their numbers."""
    named, inverse = described.get("id2label"), described.get("label2id")
    if not named and isinstance(inverse, Mapping):
        named = {str(index): name for name, index in inverse.items()}
    timm = described.get("pretrained_cfg")
    listed = described.get("label_names") or (timm.get("label_names") if isinstance(timm, Mapping) else None)
    if isinstance(named, Mapping) and all(str(i) in named for i in range(len(named))):
        listed = [named[str(i)] for i in range(len(named))]
    elif named:
        listed = named
    if isinstance(listed, list) and len(listed) == classes and all(map(_is_name, listed)):
        return tuple(map(str, listed)), []
    count = len(listed) if isinstance(listed, (list, Mapping)) else 0
    unfit = f"; config.json names {count}, which are not 0 to {classes - 1}" if listed else ""
    guessed = [f"the class indices, 0 to {classes - 1}, as their labels{unfit} (--labels FILE names them)"]
    return tuple(map(str, range(classes))), guessed if classes else []


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)
