"""Programs that run the same ViT: vit-edge and other tools.

The others get what their documentation tells a user to give them: the model as `torch.onnx.export` writes
it by default, taking normalized float images. What turns pixels into those is not timed, which is to
their advantage; ours take the pixels themselves.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from calibration.graph import Array
from calibration.quantize import quantize
from export.files import model_bytes
from export.from_torch import export_float
from runtime.session import open_session
from runtime.targets import Target
from vit.model import ViT

REFERENCE = "torch eager float32"
BASELINE = "ORT float32, torch.onnx export"
OURS = "vit-edge INT8, ORT"


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


@dataclass(frozen=True)
class Skipped:
    """A way that cannot be tried here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bench:
    """Model, images and settings that the peers are built from.

    Attributes:
        model: the float model in torch, in eval mode.
        images: what to calibrate with, each uint8 [1, H, W, 3].
        folder: an existing folder for model files.
        target: the form of our INT8 weights.
    """

    model: ViT
    images: Sequence[Array]
    folder: Path
    target: Target


def build(bench: Bench, *, variations: bool = False) -> Iterator[Peer | Skipped]:
    """Every way there is, floats first. With `variations`, ONNX Runtime's tools also per channel."""
    ours = export_float(bench.model).model
    plain = export_plain(bench.model, bench.folder / "plain.onnx")
    normalized = _normalized(bench.model)
    yield Peer(REFERENCE, lambda threads: _torch(bench.model, threads))
    yield _ours("ORT float32, vit-edge graph", _written(ours, bench.folder / "ours.onnx"), bench.target)
    yield _ort(BASELINE, plain, bench.model)
    yield from _onnxruntime_tools(bench, plain, variations)
    if openvino := _installed("openvino"):
        yield _openvino("OpenVINO float32", plain, normalized)
    if openvino and _installed("nncf"):
        yield _openvino("OpenVINO + NNCF INT8", _nncf(bench, plain), normalized)
    quantized = quantize(ours, bench.images, target=bench.target).model
    path = _written(quantized, bench.folder / "ours.int8.onnx")
    yield _ours(OURS, path, bench.target)
    if openvino:
        yield _openvino("vit-edge INT8, same file in OpenVINO", path, lambda pixels: pixels)
    for package in ("openvino", "nncf"):
        if not _installed(package):
            yield Skipped(package, f"not installed; pip install {package}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def extra_graph(path: Path, target: Target) -> Peer:
    """Any other .onnx that takes uint8 pixels, as [N, H, W, 3] or [N, 3, H, W]."""

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


def export_plain(model: ViT, path: Path) -> Path:
    """The model without its normalization, float [1, 3, H, W] in, exported with torch's defaults."""
    plain = copy.deepcopy(model).eval()
    plain.normalize = nn.Identity()  # type: ignore[assignment]
    with quiet():
        torch.onnx.export(plain, (torch.zeros(1, 3, *model.config.image_size),), path, dynamo=True)
    return path


def _torch(model: ViT, threads: int) -> Opened:
    def run(pixels: torch.Tensor) -> Array:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return np.asarray(model(pixels).numpy())

    return Opened(torch.from_numpy, run)


def _ours(name: str, path: Path, target: Target) -> Peer:
    def open_(threads: int) -> Opened:
        return _session(
            open_session(path, device="cpu", threads=threads, target=target), lambda pixels: pixels
        )

    return Peer(name, open_, _file_size(path))


def _written(model: ir.Model, path: Path) -> Path:
    path.write_bytes(model_bytes(model))
    return path


def _ort(name: str, path: Path, model: ViT) -> Peer:
    """A foreign file, in the session that ours get: a spinning one would disturb all the others."""

    def open_(threads: int) -> Opened:
        return _session(open_session(path, device="cpu", threads=threads), _normalized(model))

    return Peer(name, open_, _file_size(path))


def _session(session: ort.InferenceSession, prepare: Callable[[Array], Array]) -> Opened:
    name = session.get_inputs()[0].name
    return Opened(lambda pixels: {name: prepare(pixels)}, lambda feed: np.asarray(session.run(None, feed)[0]))


def _normalized(model: ViT) -> Callable[[Array], Array]:
    """Pixels as a user's code prepares them for such a model: uint8 [N, H, W, 3] → float32 [N, 3, H, W]."""

    def prepare(pixels: Array) -> Array:
        with torch.inference_mode():
            return np.ascontiguousarray(model.normalize(torch.from_numpy(pixels)).numpy())

    return prepare


def _onnxruntime_tools(bench: Bench, plain: Path, variations: bool) -> Iterator[Peer]:
    from onnxruntime.quantization import quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = bench.folder / "prepared.onnx"
    with quiet():
        quant_pre_process(str(plain), str(prepared))
    for suffix, options in (("", {}), *([(", per channel", {"per_channel": True})] if variations else [])):
        static, dynamic = (bench.folder / f"ort_{kind}{len(suffix)}.onnx" for kind in ("static", "dynamic"))
        with quiet():
            quantize_static(str(prepared), str(static), _reader(bench, prepared), **options)
            quantize_dynamic(str(prepared), str(dynamic), **options)
        yield _ort(f"ORT quantize_static INT8{suffix}", static, bench.model)
        yield _ort(f"ORT quantize_dynamic INT8{suffix}", dynamic, bench.model)


def _reader(bench: Bench, path: Path) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    name = open_session(path, device="cpu", threads=1).get_inputs()[0].name
    feeds = ({name: _normalized(bench.model)(pixels)} for pixels in bench.images)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    return Reader()


def _nncf(bench: Bench, plain: Path) -> Path:
    with quiet():
        import nncf
        import openvino

        data = nncf.Dataset(bench.images, _normalized(bench.model))
        quantized = nncf.quantize(
            openvino.Core().read_model(plain),
            data,
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(bench.images),
        )
        path = bench.folder / "nncf.xml"
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


def _openvino(name: str, path: Path, prepare: Callable[[Array], Array]) -> Peer:
    """In full float32 where it computes in float: some CPUs would make it bfloat16 unasked."""

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


def _file_size(path: Path) -> int:
    """Of a model and the file that holds its weights, where they are apart."""
    apart = (Path(f"{path}.data"), path.with_suffix(".bin"))
    return path.stat().st_size + sum(other.stat().st_size for other in apart if other.exists())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the tools' progress bars, warnings and advice out of the table."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
