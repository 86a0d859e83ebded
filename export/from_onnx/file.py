"""Reading a foreign ONNX file: in one piece, at the opset of the exporter, with standard operators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedReader
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
)

from export.canonical import OPSET
from export.from_onnx.spec import ForeignError
from runtime.model_file.data_file import is_beside, open_regular
from runtime.text import one_line

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
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
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
