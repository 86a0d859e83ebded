"""Programs that run the same ViT: vit-edge and other tools.

The others get what their documentation tells a user to give them: the model as `torch.onnx.export` writes
it by default, taking normalized float images. What turns pixels into those is not timed, which is to
their advantage; ours take the pixels themselves.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from benchmarks.engines import Peer, normalizing, onnx_runtime, openvino_runtime, torch_eager, vit_edge
from benchmarks.nncf_files import accuracy_aware_file, nncf_file, quantizers
from calibration.graph.edit import Array
from calibration.quantize_model import apply_plan, quantize
from calibration.token_merging.merge_schedule import schedule_middle_blocks
from export.sources.from_torch import export_float_graph
from export.write_artifact import serialize_model
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime
from runtime.session import open_session
from vit.model import ViT

REFERENCE = "torch eager float32"
BASELINE = "ORT float32, torch.onnx export"
OURS = "vit-edge INT8, ORT"


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
        merged: numbers of tokens to merge per block in the middle half of the blocks, each a file of its own
            beside the dense one; token merging is an approximation, so a row of its own.
        max_drop: what NNCF's accuracy-aware way may lose; None leaves that slow way out.
    """

    model: ViT
    images: Sequence[Array]
    folder: Path
    target: Target
    merged: Sequence[int] = ()
    max_drop: float | None = None


def build(bench: Bench, *, variations: bool = False, tools: bool = True) -> Iterator[Peer | Skipped]:
    """Yield every way there is, floats first.

    Args:
        bench: what they are built from.
        variations: ONNX Runtime's tools with more options, too.
        tools: whether to build what other tools make; without, ONNX Runtime's float32 stays.
    """
    ours = export_float_graph(bench.model).model
    plain = export_plain(bench.model, bench.folder / "plain.onnx")
    normalized = normalizing(bench.model)
    yield Peer(REFERENCE, lambda threads: torch_eager(bench.model, threads))
    yield vit_edge("ORT float32, vit-edge graph", _written(ours, bench.folder / "ours.onnx"), bench.target)
    yield onnx_runtime(BASELINE, plain, bench.model)
    if tools:
        yield from _onnxruntime_tools(bench, plain, variations)
    if openvino := tools and _installed("openvino"):
        yield openvino_runtime("OpenVINO float32", plain, normalized)
    if openvino and _installed("nncf"):
        with quiet():
            file = nncf_file(plain, bench.images, normalized, bench.folder / "nncf.xml")
        yield openvino_runtime("OpenVINO + NNCF INT8", file, normalized)
        if bench.max_drop is not None:
            yield _accuracy_aware(bench, plain, quantizers(file), bench.max_drop)
    quantized = quantize(ours, bench.images, target=bench.target)
    path = _written(quantized.model, bench.folder / "ours.int8.onnx")
    yield vit_edge(OURS, path, bench.target)
    for merged in bench.merged:
        plan = replace(quantized.plan, merging=schedule_middle_blocks(ours, merged))
        file = _written(apply_plan(ours, plan).model, bench.folder / f"ours.merged{merged}.onnx")
        yield vit_edge(f"{OURS}, {merged} tokens merged per block", file, bench.target)
    if openvino:
        yield openvino_runtime("vit-edge INT8, same file in OpenVINO", path, lambda pixels: pixels)
    for package in ("openvino", "nncf") if tools else ():
        if not _installed(package):
            yield Skipped(package, f"not installed; pip install {package}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def export_plain(model: ViT, path: Path) -> Path:
    """Export the model without its normalization, float [1, 3, H, W] in, with torch's defaults."""
    plain = copy.deepcopy(model).eval()
    plain.normalize = nn.Identity()  # type: ignore[assignment]
    with quiet():
        torch.onnx.export(plain, (torch.zeros(1, 3, *model.config.image_size),), path, dynamo=True)
    return path


def _written(model: ir.Model, path: Path) -> Path:
    path.write_bytes(serialize_model(model))
    return path


# Options of `quantize_static` beyond its defaults, by the words of the table.
LINEARS_ONLY: dict[str, Any] = {"per_channel": True, "op_types_to_quantize": ["MatMul", "Gemm"]}
STATIC: dict[str, dict[str, Any]] = {
    "per channel": {"per_channel": True},
    "per channel, linears and products alone": LINEARS_ONLY,
    "the same, linears alone": LINEARS_ONLY | {"extra_options": {"MatMulConstBOnly": True}},
    "the same, SmoothQuant": LINEARS_ONLY | {"extra_options": {"SmoothQuant": True}},
}


def _onnxruntime_tools(bench: Bench, plain: Path, variations: bool) -> Iterator[Peer | Skipped]:
    tools = _quantization()
    prepared = bench.folder / "prepared.onnx"
    with quiet():
        tools.shape_inference.quant_pre_process(str(plain), str(prepared))
    yield _static(bench, prepared, "", {})
    for suffix, options in (("", {}), *([(", per channel", {"per_channel": True})] if variations else [])):
        dynamic = bench.folder / f"ort_dynamic{len(suffix)}.onnx"
        with quiet():
            tools.quantize_dynamic(str(prepared), str(dynamic), **options)
        yield onnx_runtime(f"ORT quantize_dynamic INT8{suffix}", dynamic, bench.model)
    for words, chosen in STATIC.items() if variations else ():
        yield _static(bench, prepared, f", {words}", chosen)


def _quantization() -> Any:
    """Return ONNX Runtime's own tools, which few benchmarks need."""
    return importlib.import_module(f"{onnxruntime.__name__}.quantization")


def _accuracy_aware(bench: Bench, plain: Path, quantizers: int, max_drop: float) -> Peer | Skipped:
    name, file = "OpenVINO + NNCF INT8, accuracy-aware", bench.folder / "accuracy_aware.xml"
    normalized = normalizing(bench.model)
    try:
        with quiet():
            note = accuracy_aware_file(plain, bench.images, normalized, file, max_drop=max_drop)
    except ValueError as error:
        return Skipped(name, str(error))
    return replace(
        openvino_runtime(name, file, normalized), note=f"{note}; the file above it has {quantizers}"
    )


def _static(bench: Bench, prepared: Path, suffix: str, options: Mapping[str, Any]) -> Peer | Skipped:
    name = f"ORT quantize_static INT8{suffix}"
    file = bench.folder / (re.sub(r"\W+", "_", name) + ".onnx")
    try:
        with quiet():
            _quantization().quantize_static(str(prepared), str(file), _reader(bench, prepared), **options)
    except Exception as error:  # of another project, which an option of it may not survive
        return Skipped(name, " ".join(str(error).split()) or type(error).__name__)
    return onnx_runtime(name, file, bench.model)


def _reader(bench: Bench, path: Path) -> Any:
    name = open_session(path, device="cpu", threads=1).get_inputs()[0].name
    feeds = ({name: normalizing(bench.model)(pixels)} for pixels in bench.images)

    class Reader(_quantization().CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    return Reader()


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
