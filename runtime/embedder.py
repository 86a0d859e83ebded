"""An image in, its features out: what a search for alike images compares."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

import numpy as np

from .images.preprocess import MAX_PIXELS, ImageError, ImageSource
from .open_model import OpenModel
from .results import P
from .session import Device

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Embedded(Generic[P]):
    """One image of a stream: either its embedding, or why there is none."""

    image: P  # as it was given
    embedding: npt.NDArray[np.float32] | None  # [D]
    error: str | None


class Embedder(OpenModel["npt.NDArray[np.float32]"]):
    """A model file that gives embeddings, opened and ready: one exported with `--embedding`.

    Threads, processes, forks and closing are as of `Classifier`.

    Args:
        model: an .onnx file, a folder of them, or the bytes of one; as of `Classifier`.
        normalize: divide each embedding by its length, so that a product of two is their cosine.
        device: "auto" takes CUDA where it works (INT8 files: the CPU). A device named and absent is an error.
        threads: CPU threads for one image; None takes all cores that this process may use.
        max_pixels: an image with more pixels than this is refused.
        sha256: the digest that the file must have.

    Raises:
        ArtifactError: when the file is not a model that can be trusted to work, or gives no embedding.
        DeviceError: when the device is not there.
    """

    _output = "embedding"

    def __init__(
        self,
        model: os.PathLike[str] | str | bytes,
        *,
        normalize: bool = True,
        device: Device = "auto",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        sha256: str | None = None,
    ) -> None:
        self._normalize = normalize
        super().__init__(model, device=device, threads=threads, max_pixels=max_pixels, sha256=sha256)
        self._options["normalize"] = normalize

    def __call__(self, image: ImageSource) -> npt.NDArray[np.float32]:
        """Embed one image: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Returns:
            float32 [D].

        Raises:
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        return self._answer(self._one(image, "embedding"))

    def stream(
        self,
        images: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Generator[Embedded[P], None, None]:
        """Embed many images, one result each; an image that cannot be read is a result that says why.

        Arguments and errors are those of `Classifier.stream`.
        """
        found = self._many(images, workers=workers, batch=batch, ordered=ordered)
        return (Embedded(image, answer, error) for image, answer, error in found)

    def _answer(self, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return embedding_of(row, normalize=self._normalize)

    def _missing(self) -> str:
        return "it gives no embedding; export it again with --embedding"


def embedding_of(row: npt.NDArray[np.float32], *, normalize: bool) -> npt.NDArray[np.float32]:
    """Return an embedding as it is handed out.

    Args:
        row: float32 [D], as the model gives it.
        normalize: divide it by its length.

    Raises:
        ImageError: when a feature is not finite, or the length that is divided by is 0.
    """
    if not np.isfinite(row).all():
        raise ImageError("the model's answer to it is not finite")
    if not normalize:
        return row.copy()  # not a part of its batch, which it would keep
    length = float(np.linalg.norm(row.astype(np.float64)))
    if length == 0:
        raise ImageError("its embedding has no length, so no direction")
    return (row / length).astype(np.float32)
