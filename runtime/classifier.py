"""A picture in, a label out: the part of the project that an app embeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from runtime.artifact import Artifact, ArtifactError, Target, Variant, choose_file, read_artifact
from runtime.concurrency import in_batches, in_parallel
from runtime.cpu import available_cores
from runtime.preprocess import MAX_PIXELS, Picture, PictureError, Pixels, Preprocess
from runtime.session import Device, device_of, devices_for, open_first, open_session

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnxruntime import InferenceSession

P = TypeVar("P", bound="Picture")

_GPU_BATCH = 32  # pictures; beyond it a ViT gains little and waits longer
_CPU_DEVICES = {"cpu", "openvino"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class that a picture may belong to."""

    label: str
    index: int  # into `info.labels`; labels need not be unique, indices are
    score: float  # the softmax probability, 0 to 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one picture."""

    label: str
    index: int
    score: float
    top: tuple[Candidate, ...]  # best first, the prediction itself included


@dataclass(frozen=True, slots=True)
class Result(Generic[P]):
    """One picture of a stream: either a prediction, or why there is none."""

    picture: P  # as it was given
    prediction: Prediction | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a classifier runs, and where."""

    path: str
    sha256: str  # of the file
    variant: Variant
    labels: tuple[str, ...] = field(repr=False)
    preprocess: Preprocess
    target: Target  # the kind of CPU that INT8 weights were made for
    source: Mapping[str, Any] = field(repr=False)  # where the model came from
    measured: Mapping[str, Any] = field(repr=False)  # at export: its drift, among others
    device: str  # the one that "auto" took
    threads: int


class Classifier:
    """A model file, opened and ready.

    It may be called from many threads at once. Sent to another process, or used in a forked one, it opens the
    file again there. It may be closed, or used in a `with` block.

    Args:
        path: an .onnx file made by `python -m export`, or a folder of such files, of which the one that suits
            the device is taken: INT8 for a CPU, float16 for a GPU.
        device: "auto" takes CUDA where it works (INT8 files: the CPU). A device named and absent is an error.
        threads: CPU threads for one prediction; None takes all cores that this process may use.
        top: how many candidates a prediction lists.
        max_pixels: a picture with more pixels than this is refused.
        sha256: the digest that the file must have.

    Raises:
        ArtifactError: when the file is not a model that can be trusted to work.
        DeviceError: when the device is not there.
    """

    info: ModelInfo

    def __init__(
        self,
        path: Path | str,
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
        artifact, session = open_first(
            devices_for(device), lambda choice: _open(path, choice, threads, sha256, auto=device == "auto")
        )
        self.info = _describe(artifact, device_of(session), threads or available_cores())
        self._session: InferenceSession | None = session
        self._stream_session = session if self.info.threads == 1 else None
        self._process = os.getpid()

    def __call__(self, picture: Picture) -> Prediction:
        """Classify one picture: a path, the bytes of a file, a Pillow image, or a uint8 RGB array [H, W, 3].

        Raises:
            PictureError: when the picture cannot be read.
            RuntimeError: after `close`.
        """
        session = self._here()
        return self._predict(session, self._pixels(picture)[None])[0]

    def stream(
        self,
        pictures: Iterable[P],
        *,
        workers: int | None = None,
        batch: int | None = None,
        ordered: bool = True,
    ) -> Iterator[Result[P]]:
        """Classify many pictures, one result each; a picture that cannot be read is a result that says why.

        Pictures are taken a few ahead for each worker, and never held all at once.

        Args:
            pictures: anything that a single call takes.
            workers: pictures in work at a time; None is one for each core. On a CPU each worker predicts with
                one thread, which is faster in all than several threads for one picture.
            batch: pictures in one run of the model; None is 1 on a CPU and 32 on a GPU.
            ordered: give the results in the order of the pictures, and not as they are ready.

        Raises:
            ArtifactError: when the model file, which may have to be opened again for this, is another by now.
            RuntimeError: after `close`.
        """
        workers = available_cores() if workers is None else workers
        batch = (1 if self.info.device in _CPU_DEVICES else _GPU_BATCH) if batch is None else batch
        if workers < 1 or batch < 1:
            raise ValueError(f"workers and batch must be 1 or more, found {workers} and {batch}")
        if batch > 1:
            session = self._here()
            return in_batches(
                self._try_pixels,
                lambda group: self._try_batch(session, group),
                pictures,
                workers=workers,
                size=batch,
            )
        session = self._for_streams()
        return in_parallel(
            lambda picture: self._try(session, picture), pictures, workers=workers, ordered=ordered
        )

    def warm_up(self) -> None:
        """Predict a blank picture, so that the first real one is as fast as the next.

        Raises:
            ArtifactError: when the model does not give what its metadata says.
        """
        self._predict(self._here(), np.full((1, *self.info.preprocess.size, 3), 127, np.uint8))

    def close(self) -> None:
        """Let go of the model. Predictions that are under way in other threads still end well."""
        self._session = self._stream_session = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Classifier({self.info.path!r}, device={self.info.device!r}, threads={self.info.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it opens the same file there."""
        self._here()
        return _reopen, (self.info.path, self._options | {"sha256": self.info.sha256})

    def _here(self) -> InferenceSession:
        """The session for single pictures, opened again after a fork, which no thread survives."""
        if self._session is None:
            raise RuntimeError("this Classifier is closed; make a new one")
        if self._process != os.getpid():
            # Taking down a session whose threads are gone would wait for them for ever: keep it.
            self._lost = self._session, self._stream_session
            self._session = self._again(self._options["threads"])
            self._stream_session = self._session if self.info.threads == 1 else None
            self._process = os.getpid()
        return self._session

    def _for_streams(self) -> InferenceSession:
        """The session for many pictures at once: one thread for each of them."""
        session = self._here()
        if self.info.device not in _CPU_DEVICES:
            return session
        if self._stream_session is None:
            self._stream_session = self._again(1)
        return self._stream_session

    def _again(self, threads: int | None) -> InferenceSession:
        device: Any = self.info.device
        return _open(self.info.path, device, threads, self.info.sha256)[1]

    def _pixels(self, picture: Picture) -> Pixels:
        return self.info.preprocess(picture, max_pixels=self._max_pixels)

    def _predict(self, session: InferenceSession, pixels: Pixels) -> list[Prediction]:
        """uint8 [N, H, W, 3] to N predictions."""
        logits = session.run(["logits"], {"pixels": pixels})[0]
        expected = (len(pixels), len(self.info.labels))
        if logits.shape != expected:
            found = f"expected logits of shape {expected}, found {logits.shape}"
            raise ArtifactError(f"{self.info.path}: {found}; export it again")
        return [self._prediction(row) for row in logits]

    def _prediction(self, logits: npt.NDArray[np.float32]) -> Prediction:
        if not np.isfinite(logits).all():
            raise PictureError("the model's answer to it is not finite")
        order = np.argsort(-logits, kind="stable")[: self._top]
        powers = np.exp(logits.astype(np.float64) - logits.max())
        scores = powers[order] / powers.sum()
        labels = self.info.labels
        top = tuple(
            Candidate(labels[i], int(i), float(score)) for i, score in zip(order, scores, strict=True)
        )
        return Prediction(top[0].label, top[0].index, top[0].score, top)

    def _try(self, session: InferenceSession, picture: P) -> Result[P]:
        try:
            return Result(picture, self._predict(session, self._pixels(picture)[None])[0], None)
        except PictureError as error:
            return Result(picture, None, str(error))

    def _try_pixels(self, picture: P) -> tuple[P, Pixels | None, str | None]:
        try:
            return picture, self._pixels(picture), None
        except PictureError as error:
            return picture, None, str(error)

    def _try_batch(
        self, session: InferenceSession, group: list[tuple[P, Pixels | None, str | None]]
    ) -> Iterator[Result[P]]:
        readable = [pixels for _, pixels, _ in group if pixels is not None]
        try:
            predictions = iter(self._predict(session, np.stack(readable)) if readable else [])
        except PictureError:  # one answer is not finite: find out which
            yield from (self._try(session, picture) for picture, _, _ in group)
            return
        for picture, pixels, error in group:
            yield Result(picture, None if pixels is None else next(predictions), error)


def _reopen(path: str, options: dict[str, Any]) -> Classifier:
    return Classifier(path, **options)


def _preference(device: Device) -> tuple[Variant, ...]:
    return ("int8", "float32") if device in _CPU_DEVICES else ("float16", "float32", "int8")


def _open(
    path: Path | str, device: Device, threads: int | None, sha256: str | None, *, auto: bool = False
) -> tuple[Artifact, InferenceSession]:
    artifact = read_artifact(choose_file(path, _preference(device)), sha256=sha256)
    if auto and artifact.metadata.variant == "int8":
        device = "cpu"  # which is what it was made for; CUDA has no integer kernels
    session = open_session(artifact.path, device=device, threads=threads, target=artifact.metadata.target)
    artifact.expect_unchanged()
    _check_signature(session, artifact)
    return artifact, session


def _check_signature(session: InferenceSession, artifact: Artifact) -> None:
    """What the graph takes and gives must be what its metadata says.

    Raises:
        ArtifactError: when it is not.
    """
    size, classes = artifact.metadata.preprocess.size, len(artifact.metadata.labels)
    inputs = [(x.name, x.type, x.shape[1:]) for x in session.get_inputs()]
    outputs = [(y.name, y.type, y.shape[1:]) for y in session.get_outputs()]
    for what, expected, found in (
        ("input", [("pixels", "tensor(uint8)", [*size, 3])], inputs),
        ("output", [("logits", "tensor(float)", [classes])], outputs),
    ):
        if found != expected:
            lie = f"the {what} of its graph is {found}, its metadata says {expected}"
            raise ArtifactError(f"{artifact.path}: {lie}; export it again")


def _describe(artifact: Artifact, device: str, threads: int) -> ModelInfo:
    metadata = artifact.metadata
    return ModelInfo(
        path=os.path.abspath(artifact.path),  # noqa: PTH100 (Path.resolve would follow links)
        sha256=artifact.sha256,
        variant=metadata.variant,
        labels=metadata.labels,
        preprocess=metadata.preprocess,
        target=metadata.target,
        source=metadata.source,
        measured=metadata.measured,
        device=device,
        threads=threads,
    )
