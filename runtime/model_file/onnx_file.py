"""Outline of an .onnx file, read from its bytes without the onnx package.

The runtime looks here before it hands a file to ONNX Runtime, so every length is checked against what is
there: a file that is cut short, or made to hurt, gives an `OnnxError` and nothing else. Only the parts that
the runtime asks about are read (the numbers are those of onnx.proto); the weights are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap

from ..errors import InputError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
Value = int | memoryview


class OnnxError(InputError):
    """Bytes that are no ONNX model."""


@dataclass
class OnnxSummary:
    """The facts that decide whether a file is a model file of vit-edge and safe to open."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)  # that nodes name; "" is ai.onnx, which need not be named
    external_data: bool = False  # some tensor's values are in another file
    data_files: set[str] = field(default_factory=set)  # the files that these tensors name
    subgraphs: bool = False  # a node carries a graph: If, Loop, Scan
    functions: bool = False  # the model defines operators of its own


def summarize(data: bytes | mmap) -> OnnxSummary:
    """Read the outline of a serialized ModelProto.

    Raises:
        OnnxError: when the bytes are not one.
    """
    found = OnnxSummary()
    graphs = 0
    for number, value in _fields(memoryview(data)):
        if number == 1:
            found.ir_version = _integer(value)
        elif number == 7:
            graphs += 1
            _look_into("graph", value, found)
        elif number == 8:
            opset = dict(_fields(value))
            found.opsets[_domain(opset.get(1))] = _integer(opset.get(2, 0))
        elif number == 14:
            entry = dict(_fields(value))
            key = _text(entry.get(1))
            if key in found.metadata:
                raise OnnxError(f"two metadata entries are called {key!r}")
            found.metadata[key] = _text(entry.get(2))
        elif number == 25:
            found.functions = True
    if not found.ir_version or not graphs or not found.opsets:
        raise OnnxError("it has no ONNX version, graph or operator set")
    return found


_WITHIN = {  # the messages that are looked into: of which kind is the field with this number
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}


def _look_into(kind: str, message: Value, found: OnnxSummary) -> None:
    for number, value in _fields(message):
        if within := _WITHIN[kind].get(number):
            _look_into(within, value, found)
        elif kind == "node" and number == 7:
            found.domains.add(_domain(value))
        elif kind == "attribute" and number in (6, 11):
            found.subgraphs = True
        elif kind == "tensor" and (number == 13 or (number == 14 and _integer(value) != 0)):
            found.external_data = True
            if number == 13:
                entry = dict(_fields(value))
                if _text(entry.get(1)) == "location":
                    found.data_files.add(_text(entry.get(2)))


def _domain(value: Value | None) -> str:
    return "" if (name := _text(value)) == "ai.onnx" else name


def _fields(message: Value) -> Iterator[tuple[int, Value]]:
    """The fields of one protobuf message, in order: number, and an integer or the bytes of it."""
    if isinstance(message, int):
        raise OnnxError("it is no ONNX model (a number where a message belongs)")
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise OnnxError("it is no protobuf (field 0)")
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in _FIXED_SIZES:
            length = _FIXED_SIZES[wire]
        else:
            raise OnnxError(f"it is no protobuf (wire type {wire})")
        if length > end - position:
            raise OnnxError(f"it is cut short: a field of {length:,} bytes where {end - position:,} are left")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise OnnxError("it is cut short: it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise OnnxError("it is no protobuf (a number of more than ten bytes)")


def _integer(value: Value) -> int:
    if isinstance(value, int):
        return value
    raise OnnxError("it is no ONNX model (bytes where a number belongs)")


def _text(value: Value | None) -> str:
    try:
        return "" if value is None else str(value, "utf-8")  # type: ignore[arg-type]
    except (UnicodeDecodeError, TypeError):
        raise OnnxError("it is no ONNX model (no UTF-8 where text belongs)") from None
