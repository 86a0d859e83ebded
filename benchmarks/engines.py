"""Engines that run a model: torch, ONNX Runtime and OpenVINO, each opened for a number of threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.graph.edit import Array
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort
from runtime.session import open_session
from vit.model import ViT


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run. Its input is made of pixels beforehand, so that it is timed alone."""

    prepare: Callable[[Array], Any]  # uint8 [N, H, W, 3] → the input it takes
    run: Callable[[Any], Array]  # that input → float [N, classes]


@dataclass(frozen=True)
class Peer:
    """One way to run the model. `open` takes the number of threads."""

    name: str
    open: Callable[[int], Opened]
    bytes: int | None = None  # of its file, where it has one
    note: str = ""  # what a reader of its row should know


def torch_eager(model: ViT, threads: int) -> Opened:
    """Return the float model in torch, as it is."""

    def run(pixels: torch.Tensor) -> Array:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(model(pixels).numpy())

    return Opened(torch.from_numpy, run)


def vit_edge(name: str, path: Path, target: Target) -> Peer:
    """Return a file of this project in ONNX Runtime; it takes the pixels themselves."""

    def open_(threads: int) -> Opened:
        return _session(
            open_session(path, device="cpu", threads=threads, target=target), lambda pixels: pixels
        )

    return Peer(name, open_, _file_size(path))


def onnx_runtime(name: str, path: Path, model: ViT) -> Peer:
    """Return another exporter's model in the same kind of session: spinning would disturb the others."""

    def open_(threads: int) -> Opened:
        return _session(open_session(path, device="cpu", threads=threads), normalizing(model))

    return Peer(name, open_, _file_size(path))


def extra_graph(path: Path, target: Target) -> Peer:
    """Return any other .onnx that takes uint8 pixels, as [N, H, W, 3] or [N, 3, H, W].

    Opening it raises `ValueError` if it takes anything else.
    """

    def open_(threads: int) -> Opened:
        session = open_session(path, device="cpu", threads=threads, target=target)
        (entry,) = session.get_inputs()
        if (
            entry.type != "tensor(uint8)"
            or len(entry.shape) != 4
            or 3 not in (entry.shape[1], entry.shape[3])
        ):
            raise ValueError(
                "expected one input of uint8 pixels, [N, H, W, 3] or [N, 3, H, W]; "
                f"found {entry.type} {entry.shape}"
            )
        first = entry.shape[1] == 3
        return _session(session, lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if first else x)

    return Peer(f"{path.name}, ORT", open_, path.stat().st_size)


def openvino_runtime(name: str, path: Path, prepare: Callable[[Array], Array]) -> Peer:
    """Return a file in OpenVINO, in full float32: some CPUs would compute in bfloat16 unasked."""

    def open_(threads: int) -> Opened:
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(path, "CPU", options)
        request = compiled.create_infer_request()
        return Opened(prepare, lambda feed: np.array(request.infer([feed], share_inputs=True)[0]))

    return Peer(name, open_, _file_size(path))


def normalizing(model: ViT) -> Callable[[Array], Array]:
    """Return what a user's code does for such a model: uint8 [N, H, W, 3] → float32 [N, 3, H, W]."""

    def prepare(pixels: Array) -> Array:
        with torch.inference_mode():
            return np.ascontiguousarray(model.normalize(torch.from_numpy(pixels)).numpy())

    return prepare


def _session(session: ort.InferenceSession, prepare: Callable[[Array], Array]) -> Opened:
    name = session.get_inputs()[0].name
    return Opened(lambda pixels: {name: prepare(pixels)}, lambda feed: np.asarray(session.run(None, feed)[0]))


def _file_size(path: Path) -> int:
    """Return the bytes of a model, with the file that holds its weights where they are apart."""
    apart = (Path(f"{path}.data"), path.with_suffix(".bin"))
    return path.stat().st_size + sum(other.stat().st_size for other in apart if other.exists())
