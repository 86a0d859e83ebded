"""An image in, a label out: the part of the project that an app embeds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.artifact import ArtifactError, named
from runtime.concurrency import in_batches, in_parallel
from runtime.cpu import available_cores
from runtime.opening import CPU_DEVICES, ModelInfo, open_model
from runtime.preprocess import MAX_PIXELS, ImageError, ImageSource, Pixels
from runtime.results import P, Prediction, Result, prediction_of
from runtime.session import Device

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnxruntime import InferenceSession

CLOSED = "this Classifier is closed; make a new one"
_GPU_BATCH = 32  # images; beyond it a ViT gains little and waits longer


class Classifier:
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
        max_pixels: an image with more pixels than this is refused.
        sha256: the digest that the file must have.

    Raises:
        ArtifactError: when the file is not a model that can be trusted to work.
        DeviceError: when the device is not there.
    """

    info: ModelInfo

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        device: Device = "auto",
        threads: int | None = None,
        top: int = 5,
        max_pixels: int = MAX_PIXELS,
        sha256: str | None = None,
    ) -> None:
        if top < 1 or max_pixels < 1:
            raise ValueError(f"top and max_pixels must be 1 or more, found {top} and {max_pixels}")
        self._top, self._max_pixels = top, max_pixels
        self._options: dict[str, Any] = dict(device=device, threads=threads, top=top, max_pixels=max_pixels)
        self.info, session = open_model(model, device=device, threads=threads, sha256=sha256)
        # What to open again after a fork, or with one thread for streams.
        self._source: str | bytes = model if isinstance(model, bytes) else str(self.info.path)
        self._session: InferenceSession | None = session
        self._stream_session = session if self.info.threads == 1 else None
        self._process = os.getpid()
        self._closing = threading.Lock()

    def __call__(self, image: ImageSource) -> Prediction:
        """Classify one image: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Raises:
            ImageError: when the image cannot be read.
            RuntimeError: after `close`.
        """
        session = self._here()
        return self._prediction(self._logits(session, self._pixels(image)[None])[0])

    def stream(
        self,
        images: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Result[P]]:
        """Classify many images, one result each; an image that cannot be read is a result that says why.

        Images are taken a few ahead for each worker, and never held all at once.

        Args:
            images: anything that a single call takes.
            workers: images in work at a time; None is one for each core. On a CPU each worker predicts with
                one thread, which is faster in all than several threads for one image.
            batch: images in one run of the model; None is 1 on a CPU and 32 on a GPU.
            ordered: give the results in the order of the images, and not as they are ready.

        Raises:
            ArtifactError: when the model file, which may have to be opened again for this, is another by now.
            RuntimeError: after `close`.
        """
        workers = available_cores() if workers is None else workers
        batch = (1 if self.info.device in CPU_DEVICES else _GPU_BATCH) if batch is None else batch
        if workers < 1 or batch < 1:
            raise ValueError(f"workers and batch must be 1 or more, found {workers} and {batch}")
        if batch > 1:
            session = self._here()
            work = partial(self._results, session)
            return in_batches(self._prepared, work, images, workers=workers, size=batch)
        session = self._for_streams()
        return in_parallel(partial(self._result, session), images, workers=workers, ordered=ordered)

    def warm_up(self) -> None:
        """Predict a blank image, so that the first real one is as fast as the next.

        Raises:
            ArtifactError: when the model does not give what its metadata says.
        """
        blank = np.full((1, *self.info.preprocess.size, 3), 127, np.uint8)
        self._prediction(self._logits(self._here(), blank)[0])

    def close(self) -> None:
        """Let go of the model. Predictions that are under way in other threads still end well."""
        with self._closing:
            self._session = self._stream_session = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source = named(self._source)
        return f"Classifier({source!r}, device={self.info.device!r}, threads={self.info.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it opens the same file there."""
        self._here()
        return partial(Classifier, self._source, **self._options, sha256=self.info.sha256), ()

    def _here(self) -> InferenceSession:
        """Return the session for single images, opened again after a fork, which no thread survives."""
        session = self._session  # read once: another thread may close this classifier at any moment
        if session is None:
            raise RuntimeError(CLOSED)
        if self._process != os.getpid():
            # Taking down a session whose threads are gone would wait for them for ever: keep it.
            self._lost = session, self._stream_session
            session = self._again(self._options["threads"])
            self._session = session
            self._stream_session = session if self.info.threads == 1 else None
            self._process = os.getpid()
        return session

    def _for_streams(self) -> InferenceSession:
        """Return the session for many images at once: one thread for each of them."""
        session = self._here()
        if self.info.device not in CPU_DEVICES:
            return session
        stream_session = self._stream_session
        if stream_session is None:
            stream_session = self._again(1)
            with self._closing:
                if self._session is None:  # closed while the file was opened: keep nothing alive
                    raise RuntimeError(CLOSED)
                self._stream_session = stream_session
        return stream_session

    def _again(self, threads: int | None) -> InferenceSession:
        device: Any = self.info.device
        return open_model(self._source, device=device, threads=threads, sha256=self.info.sha256)[1]

    def _pixels(self, image: ImageSource) -> Pixels:
        return self.info.preprocess(image, max_pixels=self._max_pixels)

    def _logits(self, session: InferenceSession, pixels: Pixels) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] to float32 [N, classes]."""
        logits: npt.NDArray[np.float32] = session.run(["logits"], {"pixels": pixels})[0]
        expected = (len(pixels), len(self.info.labels))
        if logits.shape != expected:
            found = f"expected logits of shape {expected}, found {logits.shape}"
            raise ArtifactError(f"{named(self._source)}: {found}; export it again")
        return logits

    def _prediction(self, logits: npt.NDArray[np.float32]) -> Prediction:
        return prediction_of(logits, self.info.labels, self._top, self.info.temperature)

    def _prepared(self, image: P) -> tuple[P, Pixels | str]:
        """An image and its pixels, or why there are none."""
        try:
            return image, self._pixels(image)
        except ImageError as error:
            return image, str(error)

    def _results(self, session: InferenceSession, group: list[tuple[P, Pixels | str]]) -> Iterator[Result[P]]:
        readable = [pixels for _, pixels in group if not isinstance(pixels, str)]
        rows = iter(self._logits(session, np.stack(readable)) if readable else ())
        for image, pixels in group:
            try:
                prediction = None if isinstance(pixels, str) else self._prediction(next(rows))
                yield Result(image, prediction, pixels if isinstance(pixels, str) else None)
            except ImageError as error:  # the answer is not finite
                yield Result(image, None, str(error))

    def _result(self, session: InferenceSession, image: P) -> Result[P]:
        return next(self._results(session, [self._prepared(image)]))
