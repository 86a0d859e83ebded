"""Columns of images in, columns of result lines out: what Ray, Spark or Daft call on each batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.preprocess import MAX_PIXELS, ImageError
from ..model_file.artifact import ArtifactError, choose_model_file, read_artifact
from ..results import Result
from .output import FIELDS, format_record

if TYPE_CHECKING:
    from ..classifier import Classifier

# Of this process: an engine may copy the callable for each task.
_opened: dict[tuple[Any, ...], Classifier] = {}
_opening = threading.Lock()

if hasattr(os, "register_at_fork"):  # a thread that held the old lock is not in the child
    os.register_at_fork(after_in_child=lambda: globals().update(_opening=threading.Lock()))


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
        ArtifactError: if the file is not a model that can be used, gives several labels per image, or has
            another digest.
        ValueError: if `top` or `max_pixels` is below 1.
    """

    def __init__(
        self, model: Path | str, *, sha256: str | None = None, top: int = 5, max_pixels: int = MAX_PIXELS
    ) -> None:
        if top < 1 or max_pixels < 1:
            raise ValueError(f"top and max_pixels must be 1 or more, found {top} and {max_pixels}")
        file = choose_model_file(model)
        self.model = str(file.absolute())
        artifact = read_artifact(file, sha256=sha256)
        if artifact.metadata.thresholds is not None:
            each = "it gives several labels per image, and these columns hold one"
            raise ArtifactError(f"{artifact.name}: {each}; label with Classifier, or on one machine")
        self.sha256 = artifact.sha256
        self.top = top
        self.max_pixels = max_pixels

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Label the images of one batch; an image that cannot be read is a row with the reason.

        Args:
            columns: `path`, text that names each image, and `bytes`, the content of its file (or anything
                else that a `Classifier` takes). A third column `error`, where it is not null, is the reason
                why there is no content. Other columns are ignored. Lists, arrays and pandas columns will do.

        Returns:
            The columns `path`, `label`, `index`, `score`, `top` (a list of label, index, score) and `error`,
            as lists of the same length and order; without a prediction all but `path` and `error` are None.

        Raises:
            ArtifactError: if the model file is gone, or another by now.
            ValueError: if a column is missing or shorter than another.
        """
        rows = [self.label(*row) for row in _zip_columns(columns)]
        return {name: [row[name] for row in rows] for name in FIELDS}

    def label(self, path: str, content: Any, error: Any = None) -> dict[str, Any]:
        """Label one image and return its row. Arguments are values of the columns that a call takes."""
        if isinstance(error, str):
            return format_record(Result(path, None, error))
        if content is None or isinstance(content, float):  # pandas' null
            return format_record(Result(path, None, "it has no content (null)"))
        try:
            return format_record(Result(path, self.classifier()(content), None))
        except ImageError as failure:
            return format_record(Result(path, None, failure.reason))
        except MemoryError:
            return format_record(Result(path, None, "not enough memory to label it"))

    def classifier(self, read_model: Callable[[], bytes] | None = None) -> Classifier:
        """Return the model as it is open in this process, and open it if it is not.

        Args:
            read_model: returns the bytes of the model file; None reads it from its path.
        """
        from ..classifier import Classifier

        key = (self.model, self.sha256, self.top, self.max_pixels)
        with _opening:
            if key not in _opened:
                _opened[key] = Classifier(
                    self.model if read_model is None else read_model(),
                    device="cpu",
                    threads=1,
                    top=self.top,
                    max_pixels=self.max_pixels,
                    sha256=self.sha256,
                )
            return _opened[key]


def _zip_columns(columns: Mapping[str, Sequence[Any]]) -> Iterable[tuple[str, Any, Any]]:
    if missing := sorted({"path", "bytes"} - set(columns)):
        raise ValueError(f"expected columns path and bytes, found no {' and no '.join(missing)}")
    paths, contents = columns["path"], columns["bytes"]
    errors = columns["error"] if "error" in columns else [None] * len(paths)
    if not len(paths) == len(contents) == len(errors):
        found = f"path {len(paths)}, bytes {len(contents)}, error {len(errors)}"
        raise ValueError(f"expected columns of one length, found {found}")
    return zip(paths, contents, errors, strict=True)
