"""A model file that is loaded and runs: its sessions across threads and forks, single images and streams."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet

import numpy as np

from .concurrency import in_batches, in_parallel
from .cpu import available_cores
from .devices import DEVICES, Device, DeviceOptions
from .images.preprocess import MAX_PIXELS, ImageError, ImageSource, Pixels
from .model_file.artifact import (
    Artifact,
    ArtifactError,
    Metadata,
    choose_model_file,
    display_name,
    read_artifact,
)
from .placement import Placement, check_placement, read_multiply_adds, read_placement
from .results import P
from .session import devices_for, open_first_device, open_session, translate_error

if TYPE_CHECKING:
    import numpy.typing as npt

    from .onnx_runtime import InferenceSession

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package

# --- Load: check a model file, open it on a device, and describe both ---


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Metadata):
    """Metadata of a model file, and where it runs."""

    path: str | None  # absolute; None for a model given as bytes
    sha256: str  # of the .onnx file
    device: str  # the one that "auto" chose
    threads: int
    placement: Placement | None = field(repr=False)  # None where this ONNX Runtime cannot say


def load_model(
    model: os.PathLike[str] | str | bytes,
    *,
    device: Device,
    threads: int | None,
    sha256: str | None,
    options: DeviceOptions,
) -> tuple[ModelInfo, InferenceSession]:
    """Check a model file and open it; arguments and errors are those of `Classifier`."""

    def open_on(choice: Device) -> tuple[ModelInfo, InferenceSession]:
        variants = DEVICES[choice].variants
        source = model if isinstance(model, bytes) else choose_model_file(model, variants)
        artifact = read_artifact(source, sha256=sha256)
        if device == "auto" and artifact.metadata.variant == "int8":
            choice = "cpu"  # CUDA has no integer kernels
        multiply_adds = read_multiply_adds(artifact.metadata.measured, artifact.name)
        session = open_session(
            artifact.source,
            device=choice,
            threads=threads,
            target=artifact.metadata.target,
            weights=artifact.weights,
            options=options,
        )
        artifact.expect_unchanged()
        one_image = takes_one_image(artifact.metadata, choice)
        _check_signature(session, artifact, fixed_batch=one_image)
        if artifact.metadata.target == "npu" and "npu" not in DEVICES[choice].variants:
            _warn_once(_describe_npu_file(artifact, choice))
        placement = read_placement(session, multiply_adds)
        if device not in ("auto", "cpu") and not options.partial:
            check_placement(placement, device, artifact.name)
        info = ModelInfo(
            **vars(artifact.metadata),
            path=None if isinstance(source, bytes) else os.path.abspath(source),  # noqa: PTH100 (follows no links)
            sha256=artifact.sha256,  # after every check that has a reason of its own
            device=choice,
            threads=threads or available_cores(),
            placement=placement,
        )
        return info, session

    return open_first_device(devices_for(device), open_on)


def takes_one_image(metadata: Metadata, device: str) -> bool:
    """Return whether a run takes one image alone: the device needs static shapes, or the file has them."""
    return DEVICES[device].fixed_batch or metadata.target == "npu"


def _describe_npu_file(artifact: Artifact, device: str) -> str:
    """Return the sentence about a file for an NPU on another device: it is slow there, and its drift."""
    drift = artifact.metadata.measured.get("drift")
    sqnr = drift.get("sqnr") if isinstance(drift, dict) else None
    found = f"{sqnr:.1f} dB" if isinstance(sqnr, (int, float)) else "not measured"
    return (
        f"{artifact.name} is for an NPU, and {device} computes it more slowly than float32; its distance "
        f"from float32 on the CPU of the export: {found}"
    )


@cache  # a stream opens the model again
def _warn_once(message: str) -> None:
    _log.warning(message)


def _check_signature(session: InferenceSession, artifact: Artifact, *, fixed_batch: bool) -> None:
    """Check that inputs and outputs of the graph are those of its metadata, for any number of images.

    Args:
        session: of the model.
        artifact: the model file.
        fixed_batch: the session was opened for one image at a time.

    Raises:
        ArtifactError: when they are not.
    """
    size, outputs = artifact.metadata.preprocess.size, artifact.metadata.outputs
    rows = [(name, "tensor(float)", [features]) for name, features in outputs.items()]
    for what, expected, nodes in (
        ("input", [("pixels", "tensor(uint8)", [*size, 3])], session.get_inputs()),
        ("output", rows, session.get_outputs()),
    ):
        try:
            found = [(node.name, node.type, node.shape[1:]) for node in nodes]
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{artifact.name}: a name in its graph is no text; copy it again") from error
        if found != expected:
            both = f"the {what} of its graph is {found}, its metadata says {expected}"
            raise ArtifactError(f"{artifact.name}: {both}; export it again")
        for node in nodes:
            if isinstance(node.shape[0], int) and not (fixed_batch and node.shape[0] == 1):
                fixed = f"the batch of its {what} {node.name} is fixed to {node.shape[0]}"
                raise ArtifactError(f"{artifact.name}: {fixed}, expected one that is free; export it again")


# --- Run: across threads and forks ---

_GPU_BATCH = 32  # images; larger ones make a ViT hardly faster and each image wait longer
A = TypeVar("A")  # the answer for one image

_changing = threading.Lock()  # held by the one thread that reloads a model, or closes one
_open: WeakSet[LoadedModel[Any]] = WeakSet()
_libc = ctypes.CDLL(None) if os.name == "posix" else None
_on_exit, _exit = getattr(_libc, "on_exit", None), getattr(_libc, "_exit", None)  # looked up before a fork


def _after_fork() -> None:
    """Let a forked process, such as a worker of a web server, exit normally.

    ONNX Runtime has a thread from its import on, a session has more, and a fork copies none of them.
    Destroying a session waits for its threads: 1.32 hangs at exit or aborts, even if the session was opened
    in the new process. So the parent's sessions are never destroyed here, and the process ends before ONNX
    Runtime is.
    """
    global _changing
    _changing = threading.Lock()
    for model in list(_open):
        for session in (model._session, model._stream_session):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # never released
        model._forked |= model._session is not None  # a fork may fork again
        model._session = model._stream_session = None
    if _on_exit is not None:  # glibc calls the last function first, with the exit status
        _on_exit(_exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LoadedModel(ABC, Generic[A]):
    """Base of `Classifier` and `Embedder`, which read an output of the graph and make answers of its rows."""

    info: ModelInfo
    _output: ClassVar[str]  # of the graph

    def __init__(
        self,
        model: os.PathLike[str] | str | bytes,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
        sha256: str | None = None,
        device_options: DeviceOptions | None = None,
    ) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be 1 or more, found {max_pixels}")
        self._max_pixels = max_pixels
        self._device_options = device_options or DeviceOptions()
        self._options: dict[str, Any] = dict(
            device=device, threads=threads, max_pixels=max_pixels, device_options=self._device_options
        )
        self.info, session = load_model(
            model, device=device, threads=threads, sha256=sha256, options=self._device_options
        )
        # To reload after a fork, or with one thread for streams.
        self._source: str | bytes = model if isinstance(model, bytes) else str(self.info.path)
        if self._output not in self.info.outputs:
            raise ArtifactError(f"{display_name(self._source)}: {self._missing()}")
        self._session: InferenceSession | None = session
        self._stream_session = session if self.info.threads == 1 else None
        self._forked = False  # the sessions were those of another process
        _open.add(self)

    @abstractmethod
    def _missing(self) -> str:
        """Return why a model without this output is refused, and what to do."""

    @abstractmethod
    def _answer(self, row: npt.NDArray[np.float32]) -> A:
        """Return the answer for one row of the output; raise ImageError when it is not finite."""

    def warm_up(self) -> None:
        """Predict a blank image, so that the first real one is as fast as the next.

        Raises:
            ArtifactError: when the outputs are not those of the metadata.
            DeviceError: when the device cannot run the model, for example for lack of memory.
        """
        blank = np.full((1, *self.info.preprocess.size, 3), 127, np.uint8)
        self._answer(self._run(self._open_session(), blank, self._output)[0])

    def close(self) -> None:
        """Release the model. Predictions that run in other threads are completed."""
        with _changing:
            self._session = self._stream_session = None
            self._forked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source, name = display_name(self._source), type(self).__name__
        return f"{name}({source!r}, device={self.info.device!r}, threads={self.info.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the options: another process loads the same file."""
        self._open_session()
        return partial(type(self), self._source, **self._options, sha256=self.info.sha256), ()

    def _run_one(self, image: ImageSource, output: str) -> npt.NDArray[np.float32]:
        session = self._open_session()
        row: npt.NDArray[np.float32] = self._run(session, self._preprocess(image)[None], output)[0]
        return row

    def _run_many(
        self, images: Iterable[P], *, workers: int | None, batch: int | None, ordered: bool
    ) -> Iterator[tuple[P, A | None, str | None]]:
        """Yield each image with its answer, or with the reason why there is none."""
        workers = available_cores() if workers is None else workers
        spec = DEVICES[self.info.device]
        one_image = takes_one_image(self.info, self.info.device)
        batch = (1 if spec.on_cpu or one_image else _GPU_BATCH) if batch is None else batch
        if workers < 1 or batch < 1:
            raise ValueError(f"workers and batch must be 1 or more, found {workers} and {batch}")
        if one_image and batch > 1:
            what = spec.name if spec.fixed_batch else display_name(self._source)
            raise ValueError(f"{what} runs one image at a time, found batch={batch}; leave it out")
        if batch > 1:
            session = self._open_session()
            work = partial(self._answer_group, session)
            return in_batches(self._prepare, work, images, workers=workers, size=batch)
        session = self._open_stream_session()
        return in_parallel(partial(self._answer_one, session), images, workers=workers, ordered=ordered)

    def _open_session(self) -> InferenceSession:
        """Return the session for single images; reload the model after a fork, which no thread survives."""
        session = self._session  # read once: another thread may close this model at any moment
        if session is not None:
            return session
        with _changing:
            if self._session is None and self._forked:
                session = self._reload(self._options["threads"])
                self._stream_session = session if self.info.threads == 1 else None
                self._session = session
            if self._session is None:
                raise self._make_closed_error()
            return self._session

    def _open_stream_session(self) -> InferenceSession:
        """Return the session for many images at once: one thread for each of them."""
        session = self._open_session()
        if not DEVICES[self.info.device].on_cpu:
            return session
        stream_session = self._stream_session
        if stream_session is None:
            stream_session = self._reload(1)
            with _changing:
                if self._session is None:  # closed while the file was opened: keep nothing alive
                    raise self._make_closed_error()
                self._stream_session = stream_session
        return stream_session

    def _make_closed_error(self) -> RuntimeError:
        return RuntimeError(f"this {type(self).__name__} is closed; make a new one")

    def _reload(self, threads: int | None) -> InferenceSession:
        device: Any = self.info.device
        # Partial, since the first session was accepted: "auto" accepts any share.
        sha256, options = self.info.sha256, replace(self._device_options, partial=True)
        return load_model(self._source, device=device, threads=threads, sha256=sha256, options=options)[1]

    def _preprocess(self, image: ImageSource) -> Pixels:
        return self.info.preprocess(image, max_pixels=self._max_pixels)

    def _run(self, session: InferenceSession, pixels: Pixels, output: str) -> npt.NDArray[np.float32]:
        """Run the model: uint8 [N, H, W, 3] to float32 [N, features of the output].

        Raises:
            ArtifactError: when the model is the cause.
            DeviceError: when the device is the cause.
        """
        try:
            rows: npt.NDArray[np.float32] = session.run([output], {"pixels": pixels})[0]
        except Exception as error:  # pybind's own exception classes, of which there is no list
            raise translate_error(error, self.info.device, self._source, "cannot run") from error
        expected = (len(pixels), self.info.outputs[output])
        if rows.shape != expected:
            found = f"expected {output} of shape {expected}, found {rows.shape}"
            raise ArtifactError(f"{display_name(self._source)}: {found}; export it again")
        return rows

    def _prepare(self, image: P) -> tuple[P, Pixels | str]:
        try:
            return image, self._preprocess(image)
        except ImageError as error:
            return image, error.reason

    def _answer_group(
        self, session: InferenceSession, group: list[tuple[P, Pixels | str]]
    ) -> Iterator[tuple[P, A | None, str | None]]:
        readable = [pixels for _, pixels in group if not isinstance(pixels, str)]
        rows = iter(self._run(session, np.stack(readable), self._output) if readable else ())
        for image, pixels in group:
            try:
                answer = None if isinstance(pixels, str) else self._answer(next(rows))
                yield image, answer, pixels if isinstance(pixels, str) else None
            except ImageError as error:  # the answer is not finite
                yield image, None, error.reason

    def _answer_one(self, session: InferenceSession, image: P) -> tuple[P, A | None, str | None]:
        return next(self._answer_group(session, [self._prepare(image)]))
