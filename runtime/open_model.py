"""A model file that is open: its sessions, across threads and forks, and many images at once."""

from __future__ import annotations

import ctypes
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet

import numpy as np

from .concurrency import in_batches, in_parallel
from .cpu import available_cores
from .images.preprocess import MAX_PIXELS, ImageError, ImageSource, Pixels
from .model_file.artifact import Artifact, ArtifactError, Metadata, Variant, choose_file, named, read_artifact
from .results import P
from .session import Device, device_of, devices_for, explained, open_first, open_session

if TYPE_CHECKING:
    import numpy.typing as npt

    from .onnx_runtime import InferenceSession

# --- From a path and a wish for a device to a model that runs, and what there is to know of it ---


CPU_DEVICES = {"cpu", "openvino"}


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Metadata):
    """Model and device of a classifier: the metadata of the file, and the fields below."""

    path: str | None  # absolute; None for a model given as bytes
    sha256: str  # of the .onnx file; `digest` says whether the file holds one to find damage by
    device: str  # the one that "auto" took
    threads: int


def open_model(
    model: os.PathLike[str] | str | bytes, *, device: Device, threads: int | None, sha256: str | None
) -> tuple[ModelInfo, InferenceSession]:
    """Check a model file and open it. Arguments and errors are those of `Classifier`."""

    def open_on(choice: Device) -> tuple[ModelInfo, InferenceSession]:
        source = model if isinstance(model, bytes) else choose_file(model, _preference(choice))
        artifact = read_artifact(source, sha256=sha256)
        if device == "auto" and artifact.metadata.variant == "int8":
            choice = "cpu"  # which is what it was made for; CUDA has no integer kernels
        session = open_session(
            artifact.source,
            device=choice,
            threads=threads,
            target=artifact.metadata.target,
            weights=artifact.weights,
        )
        artifact.expect_unchanged()
        _check_signature(session, artifact)
        info = ModelInfo(
            **vars(artifact.metadata),
            path=None if isinstance(source, bytes) else os.path.abspath(source),  # noqa: PTH100 (follows no links)
            sha256=artifact.sha256,  # after every check that has a reason of its own
            device=device_of(session),
            threads=threads or available_cores(),
        )
        return info, session

    return open_first(devices_for(device), open_on)


def _preference(device: Device) -> tuple[Variant, ...]:
    return ("int8", "float32") if device in CPU_DEVICES else ("float16", "float32", "int8")


def _check_signature(session: InferenceSession, artifact: Artifact) -> None:
    """Check that inputs and outputs of the graph are those of its metadata, for any number of images.

    Raises:
        ArtifactError: when it is not.
    """
    size, outputs = artifact.metadata.preprocess.size, artifact.metadata.outputs
    for what, expected, nodes in (
        ("input", [("pixels", "tensor(uint8)", [*size, 3])], session.get_inputs()),
        (
            "output",
            [(name, "tensor(float)", [features]) for name, features in outputs.items()],
            session.get_outputs(),
        ),
    ):
        try:
            found = [(node.name, node.type, node.shape[1:]) for node in nodes]
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{artifact.name}: a name in its graph is no text; copy it again") from error
        if found != expected:
            lie = f"the {what} of its graph is {found}, its metadata says {expected}"
            raise ArtifactError(f"{artifact.name}: {lie}; export it again")
        for node in nodes:
            if isinstance(node.shape[0], int):
                fixed = f"the batch of its {what} {node.name} is fixed to {node.shape[0]}"
                raise ArtifactError(f"{artifact.name}: {fixed}, expected one that is free; export it again")


# --- A model file that is open: its sessions, across threads and forks, and many images at once ---


_GPU_BATCH = 32  # images; beyond it a ViT gains little and waits longer
A = TypeVar("A")  # what is made of one row of the output

_changing = threading.Lock()  # held by the one thread that opens a model again, or closes one
_open: WeakSet[OpenModel[Any]] = WeakSet()
_libc = ctypes.CDLL(None) if os.name == "posix" else None
_on_exit, _exit = getattr(_libc, "on_exit", None), getattr(_libc, "_exit", None)  # looked up before a fork


def _after_fork() -> None:
    """Let a forked process end in an ordinary exit, as the workers of a web server do.

    ONNX Runtime has a thread from its import on, a session has more, and a fork copies none of them. To take
    one down would wait for them: 1.32 hangs at exit or aborts, even if the session was opened in the new
    process. So sessions of the parent live on, and the process ends before ONNX Runtime is taken down.
    """
    global _changing
    _changing = threading.Lock()
    for model in list(_open):
        for session in (model._session, model._stream_session):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # never given back
        model._forked |= model._session is not None  # a fork may fork again
        model._session = model._stream_session = None
    if _on_exit is not None:  # glibc calls first what came last, with the exit status
        _on_exit(_exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class OpenModel(ABC, Generic[A]):
    """Base of `Classifier` and `Embedder`: all but which output they read, and what they make of it."""

    info: ModelInfo
    _output: ClassVar[str]  # the output of the graph that it reads

    def __init__(
        self,
        model: os.PathLike[str] | str | bytes,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        sha256: str | None = None,
    ) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be 1 or more, found {max_pixels}")
        self._max_pixels = max_pixels
        self._options: dict[str, Any] = dict(device=device, threads=threads, max_pixels=max_pixels)
        self.info, session = open_model(model, device=device, threads=threads, sha256=sha256)
        # What to open again after a fork, or with one thread for streams.
        self._source: str | bytes = model if isinstance(model, bytes) else str(self.info.path)
        if self._output not in self.info.outputs:
            raise ArtifactError(f"{named(self._source)}: {self._missing()}")
        self._session: InferenceSession | None = session
        self._stream_session = session if self.info.threads == 1 else None
        self._forked = False  # whether the sessions were those of another process
        _open.add(self)

    @abstractmethod
    def _missing(self) -> str:
        """Say why a model without this output is refused, and what to do."""

    @abstractmethod
    def _answer(self, row: npt.NDArray[np.float32]) -> A:
        """Make an answer of one row of the output; ImageError when it is not finite."""

    def warm_up(self) -> None:
        """Predict a blank image, so that the first real one is as fast as the next.

        Raises:
            ArtifactError: when the model does not give what its metadata says.
            DeviceError: when the device cannot run it, for want of memory for example.
        """
        blank = np.full((1, *self.info.preprocess.size, 3), 127, np.uint8)
        self._answer(self._rows(self._here(), blank, self._output)[0])

    def close(self) -> None:
        """Let go of the model. Predictions that are under way in other threads still end well."""
        with _changing:
            self._session = self._stream_session = None
            self._forked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source, name = named(self._source), type(self).__name__
        return f"{name}({source!r}, device={self.info.device!r}, threads={self.info.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it opens the same file there."""
        self._here()
        return partial(type(self), self._source, **self._options, sha256=self.info.sha256), ()

    def _one(self, image: ImageSource, output: str) -> npt.NDArray[np.float32]:
        """Return the row of an output for one image."""
        session = self._here()
        row: npt.NDArray[np.float32] = self._rows(session, self._pixels(image)[None], output)[0]
        return row

    def _many(
        self, images: Iterable[P], *, workers: int | None, batch: int | None, ordered: bool
    ) -> Iterator[tuple[P, A | None, str | None]]:
        """Yield each image with its answer, or with why there is none."""
        workers = available_cores() if workers is None else workers
        batch = (1 if self.info.device in CPU_DEVICES else _GPU_BATCH) if batch is None else batch
        if workers < 1 or batch < 1:
            raise ValueError(f"workers and batch must be 1 or more, found {workers} and {batch}")
        if batch > 1:
            session = self._here()
            work = partial(self._answers, session)
            return in_batches(self._prepared, work, images, workers=workers, size=batch)
        session = self._for_streams()
        return in_parallel(partial(self._next, session), images, workers=workers, ordered=ordered)

    def _here(self) -> InferenceSession:
        """Return the session for single images, opened again after a fork, which no thread survives."""
        session = self._session  # read once: another thread may close this model at any moment
        if session is not None:
            return session
        with _changing:
            if self._session is None and self._forked:
                session = self._again(self._options["threads"])
                self._stream_session = session if self.info.threads == 1 else None
                self._session = session
            if self._session is None:
                raise RuntimeError(self._closed())
            return self._session

    def _for_streams(self) -> InferenceSession:
        """Return the session for many images at once: one thread for each of them."""
        session = self._here()
        if self.info.device not in CPU_DEVICES:
            return session
        stream_session = self._stream_session
        if stream_session is None:
            stream_session = self._again(1)
            with _changing:
                if self._session is None:  # closed while the file was opened: keep nothing alive
                    raise RuntimeError(self._closed())
                self._stream_session = stream_session
        return stream_session

    def _closed(self) -> str:
        return f"this {type(self).__name__} is closed; make a new one"

    def _again(self, threads: int | None) -> InferenceSession:
        device: Any = self.info.device
        return open_model(self._source, device=device, threads=threads, sha256=self.info.sha256)[1]

    def _pixels(self, image: ImageSource) -> Pixels:
        return self.info.preprocess(image, max_pixels=self._max_pixels)

    def _rows(self, session: InferenceSession, pixels: Pixels, output: str) -> npt.NDArray[np.float32]:
        """Run the model: uint8 [N, H, W, 3] to float32 [N, features of the output].

        Raises:
            ArtifactError: when the model is at fault.
            DeviceError: when the device is.
        """
        try:
            rows: npt.NDArray[np.float32] = session.run([output], {"pixels": pixels})[0]
        except Exception as error:  # pybind's own exception classes, of which there is no list
            raise explained(error, self.info.device, self._source, "cannot run") from error
        expected = (len(pixels), self.info.outputs[output])
        if rows.shape != expected:
            found = f"expected {output} of shape {expected}, found {rows.shape}"
            raise ArtifactError(f"{named(self._source)}: {found}; export it again")
        return rows

    def _prepared(self, image: P) -> tuple[P, Pixels | str]:
        """An image and its pixels, or why there are none."""
        try:
            return image, self._pixels(image)
        except ImageError as error:
            return image, error.reason

    def _answers(
        self, session: InferenceSession, group: list[tuple[P, Pixels | str]]
    ) -> Iterator[tuple[P, A | None, str | None]]:
        readable = [pixels for _, pixels in group if not isinstance(pixels, str)]
        rows = iter(self._rows(session, np.stack(readable), self._output) if readable else ())
        for image, pixels in group:
            try:
                answer = None if isinstance(pixels, str) else self._answer(next(rows))
                yield image, answer, pixels if isinstance(pixels, str) else None
            except ImageError as error:  # the answer is not finite
                yield image, None, error.reason

    def _next(self, session: InferenceSession, image: P) -> tuple[P, A | None, str | None]:
        return next(self._answers(session, [self._prepared(image)]))
