"""An image in, a label out: the part of the project that an app embeds."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np

from .embedder import embedding_of
from .images.preprocess import MAX_PIXELS, ImageSource
from .model_file.artifact import ArtifactError, named
from .open_model import OpenModel
from .results import P, Prediction, Result, prediction_of, unsure
from .session import Device

if TYPE_CHECKING:
    import numpy.typing as npt


class Classifier(OpenModel[Prediction]):
    """A model file, opened and ready.

    It may be called from many threads at once. Sent to another process, or used in a forked one, it opens the
    file again there. It may be closed, or used in a `with` block.

    Args:
        model: an .onnx file made by `python -m export`; or a folder of such files, of which the one that
            suits the device is taken: INT8 for a CPU, float16 for a GPU; or the bytes of such a file, for a
            model out of an app bundle or a database, or that the app decrypts. Bytes are kept in memory.
        device: "auto" takes CUDA where it works (INT8 files: the CPU). A device named and absent is an error.
        threads: CPU threads for one prediction; None takes all cores that this process may use.
        top: how many candidates a prediction lists.
        min_score: below this score, 0 to 1, a prediction has no label and no index; None gives every label.
        max_pixels: an image with more pixels than this is refused.
        sha256: the digest that the file must have.

    Raises:
        ArtifactError: when the file is not a model that can be trusted to work, or has no classes.
        DeviceError: when the device is not there.
    """

    _output = "logits"

    def __init__(
        self,
        model: os.PathLike[str] | str | bytes,
        *,
        device: Device = "auto",
        threads: int | None = None,
        top: int = 5,
        min_score: float | None = None,
        max_pixels: int = MAX_PIXELS,
        sha256: str | None = None,
    ) -> None:
        if top < 1:
            raise ValueError(f"top must be 1 or more, found {top}")
        if min_score is not None and not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be 0 to 1, found {min_score}")
        self._top, self._min_score = top, min_score
        super().__init__(model, device=device, threads=threads, max_pixels=max_pixels, sha256=sha256)
        self._options |= dict(top=top, min_score=min_score)

    def __call__(self, image: ImageSource) -> Prediction:
        """Classify one image: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Raises:
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        return self._answer(self._one(image, "logits"))

    def embed(self, image: ImageSource, *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """Return the embedding of one image, of a model exported with `--embedding`.

        Args:
            image: anything that a call takes.
            normalize: divide it by its length, so that a product of two embeddings is their cosine.

        Returns:
            float32 [D].

        Raises:
            ArtifactError: when the model gives no embedding.
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        if "embedding" not in self.info.outputs:
            raise ArtifactError(
                f"{named(self._source)}: it gives no embedding; export it again with --embedding"
            )
        return embedding_of(self._one(image, "embedding"), normalize=normalize)

    def stream(
        self,
        images: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Generator[Result[P], None, None]:
        """Classify many images, one result each; an image that cannot be read is a result that says why.

        Images are taken a few ahead for each worker, and never held all at once. A result is given once an
        image after it was taken, or there is none: of images that come slowly, the stream lags by one. Close
        it, or let go of it, to end it early.

        Args:
            images: anything that a single call takes.
            workers: images in work at a time; None is one for each core. On a CPU each worker predicts with
                one thread, which is faster in all than several threads for one image.
            batch: images in one run of the model; None is 1 on a CPU and 32 on a GPU.
            ordered: give the results in the order of the images, and not as they are ready.

        Raises:
            ArtifactError: when the model file, which may have to be opened again for this, is another by now,
                or fails when it runs.
            DeviceError: when the device fails.
            RuntimeError: after `close`.
        """
        found = self._many(images, workers=workers, batch=batch, ordered=ordered)
        return (
            Result(image, answer, error if answer is None else unsure(answer, self._min_score))
            for image, answer, error in found
        )

    def _answer(self, row: npt.NDArray[np.float32]) -> Prediction:
        return prediction_of(row, self.info.labels, self._top, self.info.temperature, self._min_score)

    def _missing(self) -> str:
        return "it has no classes; use Embedder"
