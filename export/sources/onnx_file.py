"""Source in ONNX: the model of another exporter, brought into canonical form. No torch here.

The steps: bytes, external data, one opset and standard operators, one input of images and one output of
logits, the rewrites. The original file stays beside it, running, as the reference.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from io import BufferedReader
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
from calibration.graph.layers import read_linear
from calibration.graph.memory import open_graph_session
from export.graph.canonicalize import canonicalize_onnx
from export.graph.float_model import OPSET, OUTPUT, FloatModel, rename_to_embedding
from export.sources.onnx_description import OnnxDescription, OnnxModelError, choose_onnx, describe_onnx
from export.sources.scores import remove_activation
from export.sources.source import Reference, Source
from runtime.model_file.integrity import is_beside, open_regular_file
from runtime.onnx_runtime import onnxruntime as ort
from runtime.text import clean_line, format_count
from vit.pretrained.description import ONE_CLASS
from vit.pretrained.hub import describe_download, download

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger")
BIG_TENSOR = 2**16  # bytes; shapes, axes and scales, which the converter reads, are smaller
MAX_BYTES = 2**31 - 1
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
PROBES = 4  # images of noise, on which a softmax that is removed is compared with the runtime's


def read_onnx(model: Path, preprocess: Path | None = None) -> Source:
    """Read an ONNX model and its description; the original file in ONNX Runtime is its reference.

    Args:
        model: an .onnx file, or the folder of optimum or transformers.js.
        preprocess: the description, or a preprocessor_config.json; None to look beside the model.

    Raises:
        OnnxModelError: for files that cannot be used.
    """
    described = describe_onnx(model, preprocess)
    source = read_onnx_file(described.file, described.description)
    more = describe_download(described.file) | (
        {"assumed": list(described.assumed)} if described.assumed else {}
    )
    return replace(source, description={"name": described.name, **source.description, **more})


def fetch_onnx(source: Path) -> Path:
    """Download an ONNX model by its name on the hub, with its external data and the documents beside it.

    Args:
        source: a name, as `hub.download` takes it; a path is returned as it is.

    Returns:
        The folder, or the .onnx file that the name has.

    Raises:
        SourceError, FailureError, MissingPackageError: as `hub.download`.
        OnnxModelError: for a file that is no ONNX model.
    """
    return download(source, choose_onnx, _list_data_files, what="an ONNX model")


def _list_data_files(file: Path) -> set[str]:
    """Return the files with weights that a model names; one outside its folder is refused when it is read."""
    tensors = _tensors(_parse(_read_bytes(file), file))
    return {_entry(each).get("location", "") for each in tensors if _is_external(each)}


def read_onnx_file(path: Path, description: OnnxDescription) -> Source:
    """Read a float ONNX classifier and bring it into the form that quantizes well.

    External data, if any, must lie in the same folder. The source is described by the name and the digest of
    the file alone.

    Raises:
        OnnxModelError: for a file that is no float image classifier with one input.
    """
    data = _read_bytes(path)
    parsed = _parse(data, path)
    _read_external(parsed, path)
    original = _standardize(parsed, path)
    _check_classifier(original, path)
    if description.labels != ():  # an embedding may be of any form
        size = (PROBES, *description.preprocess.size, 3)
        probes = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        several = description.thresholds is not None
        run = lambda model: _run(open_graph_session(model), probes, description, path)  # noqa: E731
        remove_activation(original, path, run, several=several)
    canonical = original.clone()
    try:
        passes = canonicalize_onnx(
            canonical, size=description.preprocess.size, mean=description.mean, std=description.std
        )
    except GraphError as error:
        raise OnnxModelError(f"{path}: {error}") from error
    labels = _choose_labels(canonical, description.labels, path)
    open_original = cache(lambda: open_graph_session(original))  # when the reference is first asked
    return Source(
        exported=FloatModel(canonical, passes),
        reference=Reference(lambda pixels: _run(open_original(), pixels, description, path)),
        reference_name="the original ONNX",
        preprocess=description.preprocess,
        labels=labels,
        thresholds=_choose_thresholds(description.thresholds, len(labels), path),
        embedding=None if labels else rename_to_embedding(canonical),
        description={"onnx": path.name, "sha256": hashlib.sha256(data).hexdigest()},
        float_layers=_list_float_layers(canonical),
    )


# --- From bytes to a model at one opset, with standard operators ---


def _read_bytes(path: Path) -> bytes:
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise OnnxModelError(f"{path}: more bytes than an ONNX file can have ({MAX_BYTES:,})")
            return file.read(size)
    except OSError as error:
        raise OnnxModelError(f"{path}: it cannot be read: {error.strerror or error}") from error


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    """Parse the model; external data stays in its files."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own classes differ between its implementations
        raise OnnxModelError(f"{path}: not an ONNX model, or a damaged one ({error})") from error
    if not model.graph.node or not model.opset_import:
        raise OnnxModelError(f"{path}: not an ONNX model: it has no operators")
    return model


def _read_external(model: onnx.ModelProto, path: Path) -> None:
    """Read the weights that the model has in files beside it, each of which is opened once."""
    outside: dict[str, list[onnx.TensorProto]] = {}
    for each in _tensors(model):
        if _is_external(each):
            outside.setdefault(_entry(each).get("location", ""), []).append(each)
    for location, tensors in sorted(outside.items()):
        weight, beside = repr(clean_line(tensors[0].name)), repr(clean_line(location))
        if not is_beside(location):
            raise OnnxModelError(
                f"{path}: the weight {weight} is said to lie in {beside}, outside the model's folder or "
                "below it; do not use this file, or export it again as one file"
            )
        try:
            with open_regular_file(path.parent / location) as file:
                for tensor in tensors:
                    tensor.raw_data = _read_values(tensor, file)
                    tensor.data_location = onnx.TensorProto.DEFAULT
                    del tensor.external_data[:]
        except FileNotFoundError as error:
            lies = f"the weight {weight} lies in {beside}"
            raise OnnxModelError(f"{path}: {lies}, which is missing beside it") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OnnxModelError(f"{path}: its external data cannot be read ({beside}: {reason})") from error


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a message, at any depth."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for described, value in message.ListFields():
        if described.message_type is not None:
            for each in value if described.is_repeated else [value]:
                yield from _tensors(each)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _entry(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _read_values(tensor: onnx.TensorProto, file: BufferedReader) -> bytes:
    """Read the values of a tensor from the file that holds them; ValueError where they are not there."""
    entry, size, name = _entry(tensor), os.fstat(file.fileno()).st_size, repr(clean_line(tensor.name))
    try:
        length = (prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth + 7) // 8
    except (TypeError, ValueError):  # text has no size, and an unknown type neither
        raise ValueError(f"{name} is of type {tensor.data_type}, which cannot be in a file") from None
    offset, stated = _parse_count(entry.get("offset", "0")), _parse_count(entry.get("length", str(length)))
    if stated != length:
        raise ValueError(f"{name} has {length:,} bytes by its shape, and {stated:,} there")
    if min(tensor.dims, default=0) < 0 or offset + length > size:
        raise ValueError(f"{name} lies at bytes {offset:,} to {offset + length:,} of {size:,}")
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise ValueError("it became shorter while it was read")
    return content


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"expected a number of bytes, found {clean_line(text)!r}")
    return int(text)


def _standardize(model: onnx.ModelProto, path: Path) -> ir.Model:
    """Return the model at `OPSET`, functions inlined, constants as initializers, standard operators only."""
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    graph = _prepare(ir.from_proto(model))
    nodes = list(graph.graph.all_nodes())  # those of subgraphs, too: a branch that is taken becomes the graph
    if others := sorted({f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")}):
        raise OnnxModelError(
            f"{path}: expected standard operators, found {', '.join(others)}; export the model again "
            "without ONNX Runtime's optimizer"
        )
    types = {node.op_type for node in nodes}
    if found := sorted(types.intersection(QUANTIZED)):
        raise OnnxModelError(f"{path}: expected a float model, found {found[0]}; give the model before INT8")
    if found := sorted(types.intersection({"Loop", "Scan"})):
        raise OnnxModelError(f"{path}: {found[0]} is in it, whose shapes are not fixed; trace, do not script")
    if version >= OPSET:
        return graph
    try:
        converted = _convert_opset(graph)
    except Exception as error:  # the converter is C++ and raises plain RuntimeError among others
        failed = f"opset {version} cannot be brought to {OPSET} ({clean_line(str(error))})"
        raise OnnxModelError(f"{path}: {failed}; export it again with opset {OPSET}") from error
    return _prepare(converted)


def _convert_opset(model: ir.Model) -> ir.Model:
    """Return the model at `OPSET`; large weights stay aside, since the converter serializes its input."""
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


def _prepare(model: ir.Model) -> ir.Model:
    """Inline functions, lift constants, and name nodes: passes name what they insert after them."""
    RemoveInitializersFromInputsPass()(model)
    InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    taken = {node.name for node in model.graph}
    for index, node in enumerate(model.graph):
        if not node.name:  # as ONNX allows
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
    return model


# --- One input of images, one output of logits ---


def _run(session: ort.InferenceSession, pixels: Array, description: OnnxDescription, path: Path) -> Array:
    """Return the output `logits`, `float32 [N, classes]`, for `uint8 [N, H, W, 3]`."""
    (taken,) = session.get_inputs()
    images = ((pixels.astype(np.float64) / 255 - description.mean) / description.std).astype(np.float32)
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
            raise OnnxModelError(f"{path}: ONNX Runtime cannot run it ({clean_line(str(error))})") from error
    return np.concatenate(found)


def _list_float_layers(model: ir.Model) -> tuple[str, ...]:
    """Return the layers with constant weights that are no plain Gemm and so stay float, as Conv does."""
    heavy = ("Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention")
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm", *heavy)]
    return tuple(
        f"{node.name} ({node.op_type})"
        for node in products
        if node.op_type in heavy
        or (any(constant(value) is not None for value in node.inputs[:2]) and read_linear(node) is None)
    )


def _check_classifier(model: ir.Model, path: Path) -> None:
    """Check for one float32 input of images and one output of logits, and name that output "logits"."""
    inputs, outputs = model.graph.inputs, list(model.graph.outputs)
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT:
        listed = ", ".join(f"{value.name} ({value.dtype}, {value.shape})" for value in inputs)
        raise OnnxModelError(f"{path}: expected one input of float32 images, found {listed or 'none'}")
    numbers = [value for value in outputs if value.dtype in (None, *FLOATS)]
    flat = [value for value in numbers if (shape := sizes(value)) is None or len(shape) == 2]
    chosen = [value for value in outputs if value.name == OUTPUT] or flat
    if len(chosen) != 1:
        listed = ", ".join(f"{value.name} {value.shape}" for value in outputs)
        raise OnnxModelError(
            f"{path}: expected one output of numbers [N, classes] or one called {OUTPUT!r}, found {listed}"
        )
    model.graph.outputs[:] = chosen
    rename(model.graph, chosen[0], OUTPUT)


def _choose_thresholds(
    given: tuple[float, ...] | float | None, labels: int, path: Path
) -> tuple[float, ...] | None:
    """Return one threshold per label; None for a model that gives one label per image."""
    if given is None or isinstance(given, tuple):
        if given is not None and len(given) != labels:
            classes, found = format_count(labels, "class", "classes"), format_count(len(given), "threshold")
            raise OnnxModelError(f"{path}: the model has {classes}, the description {found}")
        return given
    return (float(given),) * labels


def _choose_labels(model: ir.Model, labels: tuple[str, ...] | None, path: Path) -> tuple[str, ...]:
    """Return the labels of the description, or the numbers of the classes where it has none."""
    shape = sizes(model.graph.outputs[0])
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise OnnxModelError(f"{path}: expected logits [N, classes], found an output of shape {shape}")
    if labels == ():  # no classes but an embedding, by its description
        return ()
    if shape[1] == 1:
        raise OnnxModelError(f"{path}: {ONE_CLASS}")
    if labels is None:
        return tuple(map(str, range(shape[1])))
    if len(labels) != shape[1]:
        classes, names = format_count(shape[1], "class", "classes"), format_count(len(labels), "label")
        raise OnnxModelError(f"{path}: the model has {classes}, the description {names}")
    return labels
