"""Classify images with a model file: the class that an app embeds."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .devices import Device, DeviceOptions
from .embedder import make_embedding
from .images.preprocess import MAX_PIXELS, ImageSource
from .load_model import ModelInfo
from .loaded_model import LoadedModel
from .model_file.artifact import ArtifactError, display_name
from .results import P, Prediction, Result, explain_unsure, make_prediction

if TYPE_CHECKING:
    import numpy.typing as npt

    from .self_test.check import DeviceCheck


class Classifier(LoadedModel[Prediction]):
    """A loaded model that predicts the class of an image, or its several labels.

    Many threads may call it at once. It can be pickled, and used in a forked process; both load the file
    again. It can be closed, or used in a `with` block.

    Args:
        model: an .onnx file made by `python -m export`; or a folder of such files, of which the preferred
            one is loaded (INT8 for a CPU, float16 for a GPU); or a folder of `vit-edge install`, of which the
            current one is; or the bytes of such a file, for a model in an
            app bundle or a database, or an encrypted one. Bytes are kept in memory.
        device: "auto" takes CUDA where it works (INT8 files: the CPU). Any other that is missing is an error.
        threads: CPU threads for one prediction; None takes all cores that this process may use.
        top: number of candidates in a prediction.
        min_score: below this score, 0 to 1, a prediction has no label and no index; None: it always has. A
            model with several labels per image has thresholds of its own, and takes none.
        max_pixels: an image with more pixels is refused.
        sha256: the SHA-256 that the file must have; None accepts any.
        device_options: precision, cache and more, of a device other than the plain CPU; None: the defaults.
        key: a PEM file with a public key, whose owner must have signed the model (`vit-edge sign`); None
            accepts any. It needs the extra `sign`.
        monitor: compare the last 200 images, or as many as a number says, and their scores with those at
            export: `classifier.monitor.read()` (docs/guides/monitor.md). False: do not.

    Raises:
        ArtifactError: when the file is not a valid model file, has no classes, takes no `min_score`, or has
            nothing to monitor with.
        DeviceError: when the device is not available.
        ValueError: for a number out of range.
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
        device_options: DeviceOptions | None = None,
        key: os.PathLike[str] | str | None = None,
        monitor: bool | int = False,
    ) -> None:
        if top < 1:
            raise ValueError(f"top must be 1 or more, found {top}")
        if min_score is not None and not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be 0 to 1, found {min_score}")
        self._top, self._min_score = top, min_score
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
        self._options |= dict(top=top, min_score=min_score)

    def __call__(self, image: ImageSource) -> Prediction:
        """Classify one image: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Raises:
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        use = self._take()
        return self._answer_and_count(use[0], self._run_one(use, image, "logits"))

    def embed(self, image: ImageSource, *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """Return the embedding of one image; the model must be exported with `--embedding`.

        Args:
            image: as for a call.
            normalize: divide it by its length, so that the dot product of two embeddings is their cosine.

        Returns:
            float32 [D].

        Raises:
            ArtifactError: when the model has no embedding.
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        use = self._take()
        if "embedding" not in use[0].info.outputs:
            raise ArtifactError(
                f"{display_name(use[0].source)}: it gives no embedding; export it again with --embedding"
            )
        return make_embedding(self._run_one(use, image, "embedding"), normalize=normalize)

    def stream(
        self,
        images: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Generator[Result[P], None, None]:
        """Classify many images; an image that cannot be read gives a result with the reason.

        A few images per worker are read ahead. A result is yielded after the next image was taken from
        `images`, so a slow source delays it by one image. Close the generator to end the stream early.

        Args:
            images: each as for a call.
            workers: images in work at a time; None: one per core. On a CPU each worker predicts with one
                thread, which takes less time in total than several threads per image.
            batch: images in one run of the model; None: 1 on a CPU, 32 on a GPU.
            ordered: yield the results in the order of the images; False: as soon as they are ready.

        Returns:
            A generator of one result per image.

        Raises:
            ArtifactError: when the model file was replaced and has to be loaded again, or the model fails.
            DeviceError: when the device fails.
            RuntimeError: after `close`.
            ValueError: for fewer than one worker or image in a run.
        """
        found = self._run_many(images, workers=workers, batch=batch, ordered=ordered)
        return (
            Result(image, answer, error if answer is None else explain_unsure(answer, self._min_score))
            for image, answer, error in found
        )

    def check(self) -> DeviceCheck:
        """Run the self-test in the model file on the device of this model, in a session of its own.

        Returns:
            Whether it passed, and the fault where it did not.

        Raises:
            ArtifactError: when the model file is gone.
        """
        from .self_test.check import check_model

        device: Any = self.info.device
        threads, options = self.info.threads, self._device_options
        return check_model(self._state.source, device=device, threads=threads, options=options)

    def _answer(self, info: ModelInfo, row: npt.NDArray[np.float32]) -> Prediction:
        return make_prediction(
            row, info.labels, self._top, info.temperature, self._min_score, info.thresholds
        )

    def _missing(self) -> str:
        return "it has no classes; use Embedder"
