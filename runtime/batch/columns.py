"""Columns of images in, columns of result lines out: what Ray, Spark or Daft call on each batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..images.preprocess import MAX_PIXELS, ImageError
from ..model_file.artifact import choose_file, read_artifact
from ..results import Result
from .output import FIELDS, record

if TYPE_CHECKING:
    from ..classifier import Classifier

# Of this process: an engine may copy the callable for each task.
_opened: dict[tuple[Any, ...], Classifier] = {}
_opening = threading.Lock()


def _after_fork() -> None:
    global _opening
    _opening = threading.Lock()  # a thread that held the old one is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Labels:
    """Label a batch of images that is given as columns.

    The model is opened at the first call in a process and stays open there. Pickled, it is a path, a digest
    and two numbers. One image is decoded at a time, on the thread that calls, and predicted with one thread:
    an engine runs one process per core.

    Args:
        model: an .onnx file made by `python -m export`, or a folder of them, of which INT8 is preferred.
            Every machine must have it at this path.
        sha256: the digest that the file must have, 64 hexadecimal digits; None pins the digest that the file
            has now, for all processes that this object is sent to.
        top: how many candidates a prediction lists.
        max_pixels: an image with more pixels than this is refused.

    Raises:
        ArtifactError: if the file is not a model that can be used, or has another digest.
        ValueError: if `top` or `max_pixels` is below 1.
    """

    def __init__(
        self, model: Path | str, *, sha256: str | None = None, top: int = 5, max_pixels: int = MAX_PIXELS
    ) -> None:
        if top < 1 or max_pixels < 1:
            raise ValueError(f"top and max_pixels must be 1 or more, found {top} and {max_pixels}")
        file = choose_file(model)
        self.model = str(file.absolute())
        self.sha256 = read_artifact(file, sha256=sha256).sha256
        self.top = top
        self.max_pixels = max_pixels

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Label the images of one batch; an image that cannot be read is a row that says why.

        Args:
            columns: `path`, text that names each image, and `bytes`, the content of its file (or anything
                else that a `Classifier` takes). A third column `error`, where it is not null, says why there
                is no content. Other columns are ignored. Lists, arrays and pandas columns will do.

        Returns:
            The columns `path`, `label`, `index`, `score`, `top` (a list of label, index, score) and `error`,
            as lists of the same length and order; without a prediction all but `path` and `error` are None.

        Raises:
            ArtifactError: if the model file is gone, or another by now.
            ValueError: if a column is missing or shorter than another.
        """
        rows = [self._row(*row) for row in _rows(columns)]
        return {name: [row[name] for row in rows] for name in FIELDS}

    def at(self, model: Path | str) -> Self:
        """Return the same for a copy of the model in another place, opened when it is called."""
        other = copy(self)
        other.model = str(model)
        return other

    def classifier(self) -> Classifier:
        """Return the model as it is open in this process.

        Raises:
            ArtifactError: if the model file is gone, or another by now.
        """
        from ..classifier import Classifier

        key = (self.model, self.sha256, self.top, self.max_pixels)
        with _opening:
            if key not in _opened:
                _opened[key] = Classifier(
                    self.model,
                    device="cpu",
                    threads=1,
                    top=self.top,
                    max_pixels=self.max_pixels,
                    sha256=self.sha256,
                )
            return _opened[key]

    def _row(self, path: str, content: Any, error: Any) -> dict[str, Any]:
        if isinstance(error, str):
            return record(Result(path, None, error))
        if content is None or isinstance(content, float):  # pandas' null
            return record(Result(path, None, "it has no content (null)"))
        try:
            return record(Result(path, self.classifier()(content), None))
        except ImageError as failure:
            return record(Result(path, None, failure.reason))
        except MemoryError:
            return record(Result(path, None, "not enough memory to label it"))


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterable[tuple[str, Any, Any]]:
    if missing := sorted({"path", "bytes"} - set(columns)):
        raise ValueError(f"expected columns path and bytes, found no {' and no '.join(missing)}")
    paths, contents = columns["path"], columns["bytes"]
    errors = columns["error"] if "error" in columns else [None] * len(paths)
    if not len(paths) == len(contents) == len(errors):
        found = f"path {len(paths)}, bytes {len(contents)}, error {len(errors)}"
        raise ValueError(f"expected columns of one length, found {found}")
    return zip(paths, contents, errors, strict=True)
