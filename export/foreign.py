"""A float ViT from elsewhere, as ONNX, and the description of what it wants to see."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import version_converter
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from calibration.graph import Array, GraphError, sizes
from export.passes.foreign import canonicalize_foreign
from export.passes.raw_pixels import OUTPUT
from export.torch_onnx import OPSET, FloatModel
from runtime.preprocess import Preprocess
from runtime.session import open_session

Triple = tuple[float, float, float]
SPEC_FIELDS = {"preprocess", "mean", "std", "labels"}
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")
MAX_BYTES = 2**31 - 1


class ForeignError(ValueError):
    """A model or a description from elsewhere that cannot be used."""


@dataclass(frozen=True)
class Spec:
    """What a foreign model wants to see, and what its classes are called."""

    preprocess: Preprocess
    mean: Triple  # of each channel, for pixels scaled to 0..1
    std: Triple
    labels: tuple[str, ...] | None  # None: the classes are called by their number


@dataclass(frozen=True)
class ForeignModel:
    """A foreign float model in canonical form, beside the original that it must equal."""

    exported: FloatModel
    preprocess: Preprocess
    labels: tuple[str, ...]
    path: Path
    digest: str  # SHA-256 of the .onnx file
    float_layers: tuple[str, ...]  # products of a constant weight that no pass made quantisable
    original: ir.Model = field(repr=False)
    spec: Spec = field(repr=False)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return open_session(ir.to_proto(self.original).SerializeToString(), device="cpu")

    def reference(self, pixels: Array) -> Array:
        """The logits of the original file, `float32 [N, classes]`, for `uint8 [N, H, W, 3]`."""
        (taken,) = self._session.get_inputs()
        scaled = (pixels.astype(np.float64) / 255 - self.spec.mean) / self.spec.std
        pictures = scaled.astype(np.float32)
        if taken.shape[1] == 3 or taken.shape[3] != 3:
            pictures = pictures.transpose(0, 3, 1, 2)
        size = taken.shape[0] if isinstance(taken.shape[0], int) else len(pictures)
        found = []
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            feed = {taken.name: np.ascontiguousarray(padded)}
            found.append(self._session.run([OUTPUT], feed)[0][: len(part)])
        return np.concatenate(found)


def read_spec(path: Path) -> Spec:
    """Read `{"preprocess": {…}, "mean": […], "std": […], "labels": […]}`.

    `preprocess` takes the fields of `runtime.Preprocess`, with its defaults for the others. `mean` and `std`
    are for pixels scaled to 0..1. Without `labels` the classes are called 0, 1, 2, …

    Raises:
        ForeignError: naming the field.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ForeignError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ForeignError(f"{path}: expected a JSON document, found {error}") from error
    if not isinstance(document, dict):
        raise ForeignError(f"{path}: expected a JSON object with {', '.join(sorted(SPEC_FIELDS))}")
    if unknown := sorted(set(document) - SPEC_FIELDS):
        raise ForeignError(f"{path}: unknown field {unknown[0]!r}; known: {', '.join(sorted(SPEC_FIELDS))}")
    if missing := [name for name in ("preprocess", "mean", "std") if name not in document]:
        raise ForeignError(
            f"{path}: it lacks {', '.join(missing)}: what the model was trained to see; look in its "
            "preprocessor_config.json or data config"
        )
    return Spec(
        _preprocess(document["preprocess"], path),
        _triple(document["mean"], "mean", path),
        _triple(document["std"], "std", path),
        _labels(document.get("labels"), path),
    )


def _preprocess(document: Any, path: Path) -> Preprocess:
    if not isinstance(document, Mapping):
        raise ForeignError(
            f"{path}: preprocess must be an object such as {json.dumps(Preprocess().to_dict())}"
        )
    try:
        return Preprocess.from_dict({**Preprocess().to_dict(), **document})
    except (TypeError, ValueError) as error:
        raise ForeignError(f"{path}: preprocess: {error}") from error


def _triple(values: Any, name: str, path: Path) -> Triple:
    numbers = [values] * 3 if _is_number(values) else values
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(_is_number, numbers)):
        raise ForeignError(f"{path}: {name} must be three numbers, for red, green and blue, found {values!r}")
    if name == "std" and not all(number > 0 for number in numbers):
        raise ForeignError(f"{path}: std must be above 0, found {values!r}")
    if max(map(abs, numbers)) > 1.0:
        raise ForeignError(
            f"{path}: {name} must be for pixels scaled to 0..1, found {values!r}; divide by 255"
        )
    red, green, blue = map(float, numbers)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _labels(values: Any, path: Path) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(label, str) for label in values) or not values:
        raise ForeignError(f"{path}: labels must be a list of names in the order of the classes")
    return tuple(values)


def load(path: Path, spec: Spec) -> ForeignModel:
    """Read a float ONNX classifier and bring it into the form that quantises well.

    Args:
        path: the .onnx file; its external data, if any, must lie in the same folder.
        spec: what the model wants to see.

    Raises:
        ForeignError: for a file that is no float image classifier with one input.
    """
    data = _read(path)
    original = _standard(_parse(data, path), path)
    _expect_classifier(original, path)
    canonical = original.clone()
    try:
        passes = canonicalize_foreign(canonical, size=spec.preprocess.size, mean=spec.mean, std=spec.std)
    except GraphError as error:
        raise ForeignError(f"{path}: {error}") from error
    labels = _named(canonical, spec, path)
    digest = hashlib.sha256(data).hexdigest()
    return ForeignModel(
        FloatModel(canonical, passes),
        spec.preprocess,
        labels,
        path,
        digest,
        float_layers(canonical),
        original,
        spec,
    )


def float_layers(model: ir.Model) -> tuple[str, ...]:
    """The layers with constant weights that are no plain Gemm, and so stay float: a Conv, an Einsum …"""
    names = []
    for node in model.graph:
        weights = [value for value in node.inputs[1:] if value is not None and value.const_value is not None]
        heavy = node.op_type in ("Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "Attention")
        if heavy or (node.op_type == "MatMul" and weights):
            names.append(f"{node.name} ({node.op_type})")
    return tuple(names)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ForeignError(f"{path}: more bytes than an ONNX file can have ({MAX_BYTES:,})")
        return path.read_bytes()
    except IsADirectoryError as error:
        raise ForeignError(f"{path}: expected an .onnx file, found a folder") from error
    except OSError as error:
        raise ForeignError(f"{path}: it cannot be read: {error.strerror or error}") from error


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    """The model with all its weights in memory."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own classes differ between its implementations
        raise ForeignError(f"{path}: not an ONNX model, or a damaged one ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise ForeignError(f"{path}: not an ONNX model: it has no operators")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx's checker has classes of its own
        raise ForeignError(f"{path}: its external data cannot be read ({_one_line(error)})") from error
    return model


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                found += _tensors(inner)
    return found


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """External data may only lie beside the model: a path elsewhere would read any file there is."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = entries.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        raise ForeignError(
            f"{path}: the weight {tensor.name!r} is said to lie in {location!r}, outside the model's folder; "
            "do not use this file, or export it again as one file"
        )
    if not file.is_file():
        raise ForeignError(
            f"{path}: the weight {tensor.name!r} lies in {location!r}, which is missing beside it"
        )


def _standard(model: onnx.ModelProto, path: Path) -> ir.Model:
    """The same model at our opset, functions inlined, constants as initializers, standard operators only."""
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    graph = _prepared(ir.from_proto(model))
    if foreign := sorted({f"{n.domain}.{n.op_type}" for n in graph.graph if n.domain not in ("", "ai.onnx")}):
        raise ForeignError(
            f"{path}: expected standard operators, found {', '.join(foreign)}; export the model again "
            "without ONNX Runtime's optimiser"
        )
    types = {node.op_type for node in graph.graph}
    if quantized := sorted(types.intersection(QUANTIZED)):
        raise ForeignError(
            f"{path}: expected a float model, found {quantized[0]}; give the model before INT8"
        )
    if branching := sorted(types.intersection({"If", "Loop", "Scan"})):
        raise ForeignError(
            f"{path}: {branching[0]} is in it, whose shapes are not fixed; trace, do not script"
        )
    if version >= OPSET:
        return graph
    try:
        converted = version_converter.convert_version(ir.to_proto(graph), OPSET)
    except Exception as error:  # the converter is C++ and raises plain RuntimeError among others
        raise ForeignError(
            f"{path}: opset {version} cannot be brought to {OPSET} ({_one_line(error)}); export it again "
            f"with opset {OPSET}"
        ) from error
    return _prepared(ir.from_proto(converted))


def _prepared(model: ir.Model) -> ir.Model:
    RemoveInitializersFromInputsPass()(model)
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def _expect_classifier(model: ir.Model, path: Path) -> None:
    """One float32 input of pictures; one output of logits, which is called so from here on."""
    inputs = model.graph.inputs
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT:
        listed = ", ".join(f"{value.name} ({value.dtype}, {value.shape})" for value in inputs)
        raise ForeignError(f"{path}: expected one input of float32 pictures, found {listed or 'none'}")
    outputs = list(model.graph.outputs)
    named = [value for value in outputs if value.name == OUTPUT]
    flat = [value for value in outputs if (shape := sizes(value)) is None or len(shape) == 2]
    chosen = named or flat
    if len(chosen) != 1:
        listed = ", ".join(f"{value.name} {value.shape}" for value in outputs)
        raise ForeignError(
            f"{path}: expected one output [N, classes] or one called {OUTPUT!r}, found {listed}"
        )
    model.graph.outputs[:] = chosen
    chosen[0].name = OUTPUT


def _named(model: ir.Model, spec: Spec, path: Path) -> tuple[str, ...]:
    shape = sizes(model.graph.outputs[0])
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise ForeignError(f"{path}: expected logits [N, classes], found an output of shape {shape}")
    if spec.labels is None:
        return tuple(map(str, range(shape[1])))
    if len(spec.labels) != shape[1]:
        raise ForeignError(
            f"{path}: the model has {shape[1]} classes, the description {len(spec.labels)} labels"
        )
    return spec.labels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
