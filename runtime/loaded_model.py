"""A model file that is loaded and runs: threads, forks and reloads, single images and streams."""

from __future__ import annotations

import ctypes
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet

import numpy as np

from .concurrency import in_batches, in_parallel
from .cpu import available_cores
from .devices import DEVICES, Device, DeviceOptions
from .images.find_images import is_folder
from .images.preprocess import MAX_PIXELS, ImageError, ImageSource, Pixels
from .load_model import ModelInfo, load_model, takes_one_image
from .model_file.artifact import ArtifactError, display_name
from .model_file.pointer import expect_installed, read_current
from .results import P
from .session import translate_error

if TYPE_CHECKING:
    import numpy.typing as npt

    from .monitor.monitor import Monitor
    from .onnx_runtime import InferenceSession

_GPU_BATCH = 32  # images; larger ones make a ViT hardly faster and each image wait longer
A = TypeVar("A")  # the answer for one image

_changing = threading.Lock()  # held by the one thread that reloads a model, or closes one
_open: WeakSet[LoadedModel[Any]] = WeakSet()
_states: WeakSet[_State] = WeakSet()  # those of predictions that have not ended, too
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
    for state in list(_states):
        for session in (state.session, state.stream_session):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))  # never released
    for model in list(_open):
        forked = model._state.forked or model._state.session is not None  # a fork may fork again
        model._state = replace(model._state, session=None, stream_session=None, forked=forked)
    if _on_exit is not None:  # glibc calls the last function first, with the exit status
        _on_exit(_exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, eq=False)
class _State:
    """One model file and its sessions. `reload` replaces it, and a prediction takes it once, at its begin."""

    source: str | bytes  # to open it again after a fork, or with one thread for streams
    info: ModelInfo
    session: InferenceSession | None  # None: closed, or of the process that was forked
    stream_session: InferenceSession | None  # of one thread; opened when a stream needs it
    forked: bool = False  # the sessions were those of another process
    monitor: Monitor | None = None

    def __post_init__(self) -> None:
        _states.add(self)


_Use = tuple[_State, "InferenceSession"]  # a model, and that session of it which runs


class LoadedModel(ABC, Generic[A]):
    """Base of `Classifier` and `Embedder`, which read an output of the graph and make answers of its rows."""

    _min_score: float | None = None
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
        key: os.PathLike[str] | str | None = None,
        monitor: bool | int = False,
    ) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be 1 or more, found {max_pixels}")
        self._max_pixels, self._sha256, self._key = max_pixels, sha256, key
        self._device_options = device_options or DeviceOptions()
        self._options: dict[str, Any] = dict(
            device=device,
            threads=threads,
            max_pixels=max_pixels,
            device_options=self._device_options,
            key=None if key is None else os.path.abspath(key),  # noqa: PTH100 (follows no links)
            monitor=monitor,
        )
        self._state = self._load(model)
        _open.add(self)

    @property
    def info(self) -> ModelInfo:
        """Metadata of the model, and where it runs."""
        return self._state.info

    @property
    def monitor(self) -> Monitor | None:
        """Counts of the images and answers of this model, beside those at export; None without `monitor`."""
        return self._state.monitor

    def set_monitor(self, monitor: Monitor) -> None:
        """Count with a monitor that was made for the model that is open."""
        with _changing:
            self._state = replace(self._state, monitor=monitor)

    @abstractmethod
    def _missing(self) -> str:
        """Return why a model without this output is refused, and what to do."""

    @abstractmethod
    def _answer(self, info: ModelInfo, row: npt.NDArray[np.float32]) -> A:
        """Return the answer for one row of the output; raise ImageError when it is not finite."""

    def warm_up(self) -> None:
        """Predict a blank image, so that the first real one is as fast as the next.

        Raises:
            ArtifactError: when the outputs are not those of the metadata.
            DeviceError: when the device cannot run the model, for example for lack of memory.
        """
        self._warm_up(*self._take())

    def newer(self) -> bool:
        """Return whether another model is installed: the number of the folder's current one is another.

        It reads one small file, so that it may be asked before every image.

        Raises:
            ArtifactError: when the model is in no folder of `vit-edge install`, or its `current` is damaged.
        """
        folder, number = expect_installed(self._state.source)
        return read_current(folder) != number

    def reload(self) -> bool:
        """Open the folder's current model, when it is another one, and use it from the next image on.

        It is opened and answers a blank image first; until then, and when that fails, the model that is open
        answers. Predictions that have begun end with the model that they began with. A stream goes on.

        Returns:
            Whether another model was opened.

        Raises:
            ArtifactError: as `newer`, and when the current model cannot be opened.
            DeviceError: when the device cannot run it.
            RuntimeError: after `close`.
        """
        with _changing:
            state = self._state
            if state.session is None and not state.forked:
                raise self._make_closed_error()
            if not self.newer():
                return False
            new = self._load(expect_installed(state.source)[0])
            if (
                state.stream_session is not None
                and new.stream_session is None
                and DEVICES[new.info.device].on_cpu
            ):
                new = replace(new, stream_session=self._open_again(new, 1))
            assert new.session is not None
            self._warm_up(new, new.session)
            self._state = new
        return True

    def close(self) -> None:
        """Release the model. Predictions that run in other threads are completed."""
        with _changing:
            self._state = replace(self._state, session=None, stream_session=None, forked=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        source, name = display_name(self._state.source), type(self).__name__
        return f"{name}({source!r}, device={self.info.device!r}, threads={self.info.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the options: another process loads the same file."""
        state, _ = self._take()
        made = partial(type(self), state.source, **self._options, sha256=state.info.sha256)
        return _make_copy, (made, self._sha256)

    def _load(self, model: os.PathLike[str] | str | bytes) -> _State:
        """Open a model file, or the current one of a folder: the next one where it is removed meanwhile."""
        device, threads = self._options["device"], self._options["threads"]
        options, sha256 = self._device_options, self._sha256
        folder = None if isinstance(model, bytes) or not is_folder(Path(model)) else Path(model)
        while True:
            number = None if folder is None else read_current(folder)
            try:
                info, session = load_model(
                    model, device=device, threads=threads, sha256=sha256, options=options, key=self._key
                )
                break
            except ArtifactError:
                if folder is None or number is None or read_current(folder) == number:
                    raise
        source = model if isinstance(model, bytes) else str(info.path)
        if self._output not in info.outputs:
            raise ArtifactError(f"{display_name(source)}: {self._missing()}")
        if self._min_score is not None and info.thresholds is not None:
            name = display_name(source)
            raise ArtifactError(f"{name}: its labels have thresholds of their own; leave min_score out")
        stream_session = session if info.threads == 1 else None
        return _State(source, info, session, stream_session, monitor=self._open_monitor(info, source))

    def _warm_up(self, state: _State, session: InferenceSession) -> None:
        blank = np.full((1, *state.info.preprocess.size, 3), 127, np.uint8)
        self._answer(state.info, self._run(state, session, blank, self._output)[0])

    def _run_one(self, use: _Use, image: ImageSource, output: str) -> npt.NDArray[np.float32]:
        state, session = use
        pixels = self._preprocess(state, image)
        row: npt.NDArray[np.float32] = self._run(state, session, pixels[None], output)[0]
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
            what = spec.name if spec.fixed_batch else display_name(self._state.source)
            raise ValueError(f"{what} runs one image at a time, found batch={batch}; leave it out")
        if batch > 1:
            prepare = partial(self._prepare, [self._take()])
            return in_batches(prepare, self._answer_group, images, workers=workers, size=batch)
        answer = partial(self._answer_one, [self._take_for_stream()])
        return in_parallel(answer, images, workers=workers, ordered=ordered)

    def _take(self) -> _Use:
        """Return the model for single images; open it again after a fork, which no thread survives."""
        state = self._state  # read once: another thread may close this model at any moment
        if state.session is not None:
            return state, state.session
        with _changing:
            state, session = self._state, self._state.session
            if session is None and state.forked:
                session = self._open_again(state, self._options["threads"])
                stream_session = session if state.info.threads == 1 else None
                state = replace(state, session=session, stream_session=stream_session, forked=False)
                self._state = state
            if session is None:
                raise self._make_closed_error()
            return state, session

    def _take_for_stream(self) -> _Use:
        """Return the model for many images at once: one thread for each of them."""
        while True:
            state, session = self._take()
            if state.stream_session is not None or not DEVICES[state.info.device].on_cpu:
                return state, session if state.stream_session is None else state.stream_session
            try:
                stream_session = self._open_again(state, 1)
            except ArtifactError:
                if self._state is state:
                    raise
                continue  # reloaded meanwhile, and the file is removed
            with _changing:
                if self._state.session is None:  # closed while the file was opened: keep nothing alive
                    raise self._make_closed_error()
                if self._state is state:
                    self._state = state = replace(state, stream_session=stream_session)
            return state, stream_session

    def _make_closed_error(self) -> RuntimeError:
        return RuntimeError(f"this {type(self).__name__} is closed; make a new one")

    def _open_again(self, state: _State, threads: int | None) -> InferenceSession:
        device: Any = state.info.device
        # Partial, since the first session was accepted: "auto" accepts any share.
        sha256, options = state.info.sha256, replace(self._device_options, partial=True)
        return load_model(state.source, device=device, threads=threads, sha256=sha256, options=options)[1]

    def _preprocess(self, state: _State, image: ImageSource) -> Pixels:
        if state.monitor is not None:
            return state.monitor.preprocess(state.info.preprocess, image, max_pixels=self._max_pixels)
        return state.info.preprocess(image, max_pixels=self._max_pixels)

    def _answer_and_count(self, state: _State, row: npt.NDArray[np.float32]) -> A:
        answer = self._answer(state.info, row)
        if state.monitor is not None:
            state.monitor.observe_answer(answer)
        return answer

    def _open_monitor(self, info: ModelInfo, source: str | bytes) -> Monitor | None:
        window: bool | int = self._options["monitor"]
        if window is False:
            return None
        from .monitor.monitor import WINDOW, open_monitor

        return open_monitor(
            info.field_statistics,
            info.outputs,
            display_name(source),
            output=self._output,
            window=WINDOW if window is True else window,
            min_score=self._min_score,
        )

    def _run(
        self, state: _State, session: InferenceSession, pixels: Pixels, output: str
    ) -> npt.NDArray[np.float32]:
        """Run the model: uint8 [N, H, W, 3] to float32 [N, features of the output].

        Raises:
            ArtifactError: when the model is the cause.
            DeviceError: when the device is the cause.
        """
        try:
            rows: npt.NDArray[np.float32] = session.run([output], {"pixels": pixels})[0]
        except Exception as error:  # pybind's own exception classes, of which there is no list
            raise translate_error(error, state.info.device, state.source, "cannot run") from error
        expected = (len(pixels), state.info.outputs[output])
        if rows.shape != expected:
            found = f"expected {output} of shape {expected}, found {rows.shape}"
            raise ArtifactError(f"{display_name(state.source)}: {found}; export it again")
        return rows

    def _prepare(self, last: list[_Use], image: P, *, single: bool = False) -> tuple[P, Pixels | str, _Use]:
        """Return the pixels of an image of a stream, and the model for it: the one that is open now.

        Args:
            last: the one model of the image before, which completes the stream after `close`; it is set.
            image: the next image.
            single: each worker runs the model with one thread.
        """
        state = self._state
        session = state.stream_session if single and state.stream_session is not None else state.session
        if session is not None:
            last[0] = state, session
        use = last[0]
        try:
            return image, self._preprocess(use[0], image), use
        except ImageError as error:
            return image, error.reason, use

    def _answer_group(
        self, group: list[tuple[P, Pixels | str, _Use]]
    ) -> Iterator[tuple[P, A | None, str | None]]:
        for (state, session), each in groupby(group, key=itemgetter(2)):  # two, where `reload` comes between
            same = list(each)
            readable = [pixels for _, pixels, _ in same if not isinstance(pixels, str)]
            rows = iter(self._run(state, session, np.stack(readable), self._output) if readable else ())
            for image, pixels, _ in same:
                try:
                    answer = None if isinstance(pixels, str) else self._answer_and_count(state, next(rows))
                    yield image, answer, pixels if isinstance(pixels, str) else None
                except ImageError as error:  # the answer is not finite
                    yield image, None, error.reason

    def _answer_one(self, last: list[_Use], image: P) -> tuple[P, A | None, str | None]:
        return next(self._answer_group([self._prepare(last, image, single=True)]))


def _make_copy(make: Callable[[], LoadedModel[Any]], sha256: str | None) -> LoadedModel[Any]:
    """Open the model of a pickle; what `reload` accepts later is what it was in the first process."""
    model = make()
    model._sha256 = sha256
    return model
