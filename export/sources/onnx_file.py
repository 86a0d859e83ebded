"""Reading a foreign ONNX file: in one piece, at the opset of the exporter, with standard operators."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from calibration.graph.edit import Array, GraphError, constant, rename, sizes
from calibration.graph.layers import linear_of
from calibration.graph.memory import session_of
from export.graph.canonicalize import canonicalize_onnx
from export.graph.model import OPSET, OUTPUT, FloatModel
from export.sources.scores import take_logits
from export.sources.spec import ForeignError, Spec
from runtime.images.preprocess import Preprocess
from runtime.model_file.data_file import is_beside, open_regular
from runtime.onnx_runtime import onnxruntime as ort
from runtime.text import counted, one_line
from vit.pretrained.documents import ONE_CLASS

# --- Reading a foreign ONNX file: in one piece, at the opset of the exporter, with standard operators ---


QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")
BIG_TENSOR = 2**16  # bytes; shapes, axes and scales, which the converter reads, are smaller
MAX_BYTES = 2**31 - 1


def read_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ForeignError(f"{path}: more bytes than an ONNX file can have ({MAX_BYTES:,})")
            return file.read(size)
    except OSError as error:
        raise ForeignError(f"{path}: it cannot be read: {error.strerror or error}") from error


def parse(data: bytes, path: Path) -> onnx.ModelProto:
    """Parse the model, with all its weights in memory."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own classes differ between its implementations
        raise ForeignError(f"{path}: not an ONNX model, or a damaged one ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise ForeignError(f"{path}: not an ONNX model: it has no operators")
    _read_external(model, path)
    return model


def _read_external(model: onnx.ModelProto, path: Path) -> None:
    """Read the weights that the model has in files beside it, each of which is opened once."""
    outside = [each for each in _tensors(model) if each.data_location == onnx.TensorProto.EXTERNAL]
    for location, group in groupby(sorted(outside, key=_location), _location):
        tensors = list(group)
        weight, beside = _quoted(tensors[0].name), _quoted(location)
        if not is_beside(location):
            raise ForeignError(
                f"{path}: the weight {weight} is said to lie in {beside}, outside the model's folder or "
                "below it; do not use this file, or export it again as one file"
            )
        try:
            with open_regular(path.parent / location) as file:
                for tensor in tensors:
                    tensor.raw_data = _content(tensor, file)
                    tensor.data_location = onnx.TensorProto.DEFAULT
                    del tensor.external_data[:]
        except FileNotFoundError as error:
            raise ForeignError(
                f"{path}: the weight {weight} lies in {beside}, which is missing beside it"
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ForeignError(f"{path}: its external data cannot be read ({beside}: {reason})") from error


def _quoted(text: str) -> str:
    return repr(one_line(text))


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """The tensors of a message, wherever they are."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for described, value in message.ListFields():
        if described.message_type is not None:
            for each in value if described.is_repeated else [value]:
                yield from _tensors(each)


def _location(tensor: onnx.TensorProto) -> str:
    return _place(tensor).get("location", "")


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _content(tensor: onnx.TensorProto, file: BufferedReader) -> bytes:
    """Read the values of a tensor from the file that holds them.

    Raises:
        ValueError: when they are not there.
    """
    place, size, name = _place(tensor), os.fstat(file.fileno()).st_size, _quoted(tensor.name)
    try:
        length = (prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth + 7) // 8
    except (TypeError, ValueError):  # text has no size, and an unknown type neither
        raise ValueError(f"{name} is of type {tensor.data_type}, which cannot be in a file") from None
    offset, stated = _count(place.get("offset", "0")), _count(place.get("length", str(length)))
    if stated != length:
        raise ValueError(f"{name} has {length:,} bytes by its shape, and {stated:,} there")
    if min(tensor.dims, default=0) < 0 or offset + length > size:
        raise ValueError(f"{name} lies at bytes {offset:,} to {offset + length:,} of {size:,}")
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise ValueError("it became shorter while it was read")
    return content


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"expected a number of bytes, found {_quoted(text)}")
    return int(text)


def standard(model: onnx.ModelProto, path: Path) -> ir.Model:
    """The same model at our opset, functions inlined, constants as initializers, standard operators only."""
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    graph = _prepared(ir.from_proto(model))
    nodes = list(graph.graph.all_nodes())  # those of subgraphs, too: a branch that is taken becomes the graph
    if foreign := sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")}):
        raise ForeignError(
            f"{path}: expected standard operators, found {', '.join(foreign)}; export the model again "
            "without ONNX Runtime's optimizer"
        )
    types = {node.op_type for node in nodes}
    if quantized := sorted(types.intersection(QUANTIZED)):
        raise ForeignError(
            f"{path}: expected a float model, found {quantized[0]}; give the model before INT8"
        )
    if branching := sorted(types.intersection({"Loop", "Scan"})):
        raise ForeignError(
            f"{path}: {branching[0]} is in it, whose shapes are not fixed; trace, do not script"
        )
    if version >= OPSET:
        return graph
    try:
        converted = _converted(graph)
    except Exception as error:  # the converter is C++ and raises plain RuntimeError among others
        raise ForeignError(
            f"{path}: opset {version} cannot be brought to {OPSET} ({_one_line(error)}); export it again "
            f"with opset {OPSET}"
        ) from error
    return _prepared(converted)


def _converted(model: ir.Model) -> ir.Model:
    """The model at our opset; large weights stay aside, since the converter serializes what it is given."""
    graph, aside = model.graph, dict[str, ir.TensorProtocol]()
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > BIG_TENSOR:
            aside[name] = value.const_value
            value.const_value = None
            del graph.initializers[name]
            graph.inputs.append(value)
    converted = ir.from_proto(version_converter.convert_version(ir.to_proto(model), OPSET))
    for value in [value for value in converted.graph.inputs if value.name in aside]:
        converted.graph.inputs.remove(value)
        value.const_value = aside[str(value.name)]
        converted.graph.register_initializer(value)
    return converted


def _prepared(model: ir.Model) -> ir.Model:
    RemoveInitializersFromInputsPass()(model)
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _name_nodes(model)
    return model


def _name_nodes(model: ir.Model) -> None:
    """Name the nodes that have no name, which ONNX allows: passes name what they insert after them."""
    taken = {node.name for node in model.graph}
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = next(
                name
                for suffix in ("", *(f".{count}" for count in range(1, len(taken) + 2)))
                if (name := f"{node.op_type}_{index}{suffix}") not in taken
            )
            taken.add(node.name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- Loading a foreign float ViT from ONNX, in the form that quantizes well ---


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
PROBES = 4  # images of noise, on which a softmax that is taken off is compared with the runtime's


@dataclass(frozen=True)
class ForeignModel:
    """A foreign float model in canonical form, beside the original that it must equal."""

    exported: FloatModel
    preprocess: Preprocess
    labels: tuple[str, ...]
    path: Path
    digest: str  # SHA-256 of the .onnx file
    float_layers: tuple[str, ...]  # products of a constant weight that no pass made quantizable
    original: ir.Model = field(repr=False)
    spec: Spec = field(repr=False)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return session_of(self.original)

    def reference(self, pixels: Array) -> Array:
        """Return the logits of the original file, `float32 [N, classes]`, for `uint8 [N, H, W, 3]`."""
        return answers(self._session, pixels, self.spec, self.path)


def answers(session: ort.InferenceSession, pixels: Array, spec: Spec, path: Path) -> Array:
    """Return the output `logits` of a foreign model for `uint8 [N, H, W, 3]`.

    Raises:
        ForeignError: when ONNX Runtime cannot run it.
    """
    (taken,) = session.get_inputs()
    images = ((pixels.astype(np.float64) / 255 - spec.mean) / spec.std).astype(np.float32)
    if taken.shape[1] == 3 or taken.shape[3] != 3:
        images = images.transpose(0, 3, 1, 2)
    size = taken.shape[0] if isinstance(taken.shape[0], int) else len(images)
    found = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        feed = {taken.name: np.ascontiguousarray(padded)}
        try:
            found.append(session.run([OUTPUT], feed)[0][: len(part)])
        except Exception as error:  # pybind's own exception classes, of which there is no list
            raise ForeignError(
                f"{path}: ONNX Runtime cannot run it ({' '.join(str(error).split())})"
            ) from error
    return np.concatenate(found)


def load(path: Path, spec: Spec) -> ForeignModel:
    """Read a float ONNX classifier and bring it into the form that quantizes well.

    Args:
        path: the .onnx file; its external data, if any, must lie in the same folder.
        spec: what the model wants to see.

    Raises:
        ForeignError: for a file that is no float image classifier with one input.
    """
    data = read_bytes(path)
    original = standard(parse(data, path), path)
    _expect_classifier(original, path)
    if spec.labels != ():  # an embedding may be of any form
        pixels = np.random.default_rng(0).integers(0, 256, (PROBES, *spec.preprocess.size, 3), np.uint8)
        take_logits(original, path, lambda model: answers(session_of(model), pixels, spec, path))
    canonical = original.clone()
    try:
        passes = canonicalize_onnx(canonical, size=spec.preprocess.size, mean=spec.mean, std=spec.std)
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
    """Return the layers with constant weights that are no plain Gemm and so stay float, as Conv does."""
    names = []
    for node in model.graph:
        heavy = node.op_type in ("Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention")
        parts = node.inputs[:2] if node.op_type in ("MatMul", "Gemm") else ()
        weighs = any(constant(value) is not None for value in parts)
        if heavy or (weighs and linear_of(node) is None):
            names.append(f"{node.name} ({node.op_type})")
    return tuple(names)


def _expect_classifier(model: ir.Model, path: Path) -> None:
    """Check for one float32 input of images and one output of logits, and name that output "logits"."""
    inputs = model.graph.inputs
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT:
        listed = ", ".join(f"{value.name} ({value.dtype}, {value.shape})" for value in inputs)
        raise ForeignError(f"{path}: expected one input of float32 images, found {listed or 'none'}")
    outputs = list(model.graph.outputs)
    named = [value for value in outputs if value.name == OUTPUT]
    flat = [
        value
        for value in outputs
        if (value.dtype in (None, *FLOATS)) and ((shape := sizes(value)) is None or len(shape) == 2)
    ]
    chosen = named or flat
    if len(chosen) != 1:
        listed = ", ".join(f"{value.name} {value.shape}" for value in outputs)
        raise ForeignError(
            f"{path}: expected one output of numbers [N, classes] or one called {OUTPUT!r}, found {listed}"
        )
    model.graph.outputs[:] = chosen
    rename(model.graph, chosen[0], OUTPUT)


def _named(model: ir.Model, spec: Spec, path: Path) -> tuple[str, ...]:
    shape = sizes(model.graph.outputs[0])
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise ForeignError(f"{path}: expected logits [N, classes], found an output of shape {shape}")
    if spec.labels == ():  # the description says that these are no classes but an embedding
        return ()
    if shape[1] == 1:
        raise ForeignError(f"{path}: {ONE_CLASS}")
    if spec.labels is None:
        return tuple(map(str, range(shape[1])))
    if len(spec.labels) != shape[1]:
        raise ForeignError(
            f"{path}: the model has {counted(shape[1], 'class', 'classes')}, the description "
            f"{counted(len(spec.labels), 'label')}"
        )
    return spec.labels
