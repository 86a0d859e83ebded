"""Embed images with a model file, to compare them or search for similar ones."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from .devices import Device, DeviceOptions
from .images.preprocess import MAX_PIXELS, ImageError, ImageSource
from .load_model import ModelInfo
from .loaded_model import LoadedModel
from .results import P

if TYPE_CHECKING:
    import numpy.typing as npt

    from .self_test.check import DeviceCheck


@dataclass(frozen=True, slots=True, eq=False)
class Embedded(Generic[P]):
    """One image of a stream: its embedding, or the reason why there is none."""

    image: P  # as it was given
    embedding: npt.NDArray[np.float32] | None  # [D]
    error: str | None


class Embedder(LoadedModel["npt.NDArray[np.float32]"]):
    """A loaded model that embeds images; it must be exported with `--embedding`.

    Threads, pickling, forks and closing are those of `Classifier`.

    Args:
        model: an .onnx file, a folder of them, or the bytes of one, as for `Classifier`.
        normalize: divide each embedding by its length, so that the dot product of two is their cosine.
        device: as for `Classifier`.
        threads: CPU threads for one image; None takes all cores that this process may use.
        max_pixels: an image with more pixels is refused.
        sha256: the SHA-256 that the file must have; None accepts any.
        device_options: precision, cache and more, of a device other than the plain CPU; None: the defaults.
        key: a PEM file with a public key, whose owner must have signed the model (`vit-edge sign`); None
            accepts any. It needs the extra `sign`.
        monitor: as for `Classifier`, of images and embeddings.

    Raises:
        ArtifactError: when the file is not a valid model file, has no embedding, or nothing to monitor with.
        DeviceError: when the device is not available.
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
        device_options: DeviceOptions | None = None,
        key: os.PathLike[str] | str | None = None,
        monitor: bool | int = False,
    ) -> None:
        self._normalize = normalize
        super().__init__(
            model,
            device=device,
            threads=threads,
            max_pixels=max_pixels,
            sha256=sha256,
            device_options=device_options,
            key=key,
            monitor=monitor,
        )
        self._options["normalize"] = normalize

    def __call__(self, image: ImageSource) -> npt.NDArray[np.float32]:
        """Embed one image: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Returns:
            float32 [D].

        Raises:
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        use = self._take()
        return self._answer_and_count(use[0], self._run_one(use, image, "embedding"))

    def stream(
        self,
        images: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Generator[Embedded[P], None, None]:
        """Embed many images; an image that cannot be read gives a result with the reason.

        Arguments and errors are those of `Classifier.stream`.
        """
        found = self._run_many(images, workers=workers, batch=batch, ordered=ordered)
        return (Embedded(image, answer, error) for image, answer, error in found)

    def check(self) -> DeviceCheck:
        """Run the self-test in the model file, as `Classifier.check` does."""
        from .self_test.check import check_model

        device: Any = self.info.device
        threads, options = self.info.threads, self._device_options
        return check_model(self._state.source, device=device, threads=threads, options=options)

    def _answer(self, _info: ModelInfo, row: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return make_embedding(row, normalize=self._normalize)

    def _missing(self) -> str:
        return "it gives no embedding; export it again with --embedding"


def make_embedding(row: npt.NDArray[np.float32], *, normalize: bool) -> npt.NDArray[np.float32]:
    """Return an embedding, float32 [D], that shares no memory with `row`, the output of the model.

    Raises:
        ImageError: when a feature is not finite, or the length that `normalize` divides by is 0.
    """
    if not np.isfinite(row).all():
        raise ImageError("the model's answer to it is not finite")
    if not normalize:
        return row.copy()  # a view would keep its whole batch in memory
    length = float(np.linalg.norm(row.astype(np.float64)))
    if length == 0:
        raise ImageError("its embedding has no length, so no direction")
    return (row / length).astype(np.float32)
