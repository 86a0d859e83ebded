"""Read the outline of an .onnx file from its bytes, without the onnx package.

The runtime reads it before ONNX Runtime loads the file. The protobuf parser of ONNX Runtime drops the upper
bits of long tags, merges a message that occurs twice, takes the last of two values, and skips unknown fields.
To read the same as it does, this parser accepts only the one form in which protobuf writes a message, and
only the fields that an exported model can have. It checks every length, and skips the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from ..errors import InputError

_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # the wire types of protobuf that these fields have


class OnnxError(InputError):
    """Bytes that are not an ONNX model."""


@dataclass
class OnnxSummary:
    """Outline of an ONNX model: what decides whether it is a model file of vit-edge and safe to open."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: int = 0  # of the graph; those of subgraphs and functions are not counted
    domains: set[str] = field(default_factory=set)  # that nodes name; "" is ai.onnx, which need not be named
    external_data: bool = False  # some tensor's values are in another file
    data_files: set[str] = field(default_factory=set)  # the files that these tensors name
    subgraphs: bool = False  # a node carries a graph (If, Loop, Scan), or the model describes its training
    functions: bool = False  # the model defines operators of its own


# Fields that an exported model can have, by message: number in onnx.proto and content, with * where it is
# repeated. Packed arrays and contents that are never read are bytes.
_MESSAGES = {
    "model": "1 int, 2 text, 3 text, 4 text, 5 int, 6 text, 7 graph, 8 opset*, 14 property*, "
    "20 subgraph*, 25 function*",
    "opset": "1 text, 2 int",
    "property": "1 text, 2 text",
    "graph": "1 node*, 2 text, 5 tensor*, 10 text, 11 value*, 12 value*, 13 value*, 15 sparse tensor*, "
    "16 entry*",
    "node": "1 text*, 2 text*, 3 text, 4 text, 5 attribute*, 6 text, 7 domain, 9 entry*",
    "attribute": "1 text, 2 float, 3 int, 4 bytes, 5 tensor, 6 subgraph, 7 float*, 8 int*, 9 bytes*, "
    "10 tensor*, 11 subgraph*, 13 text, 20 int, 22 sparse tensor, 23 sparse tensor*",
    "tensor": "1 int*, 2 int, 4 bytes, 5 bytes, 6 bytes*, 7 bytes, 8 text, 9 bytes, 10 bytes, 11 bytes, "
    "12 text, 13 place*, 14 int, 16 entry*",
    "sparse tensor": "1 tensor, 2 tensor, 3 int*",
    "place": "1 text, 2 text",
    "entry": "1 text, 2 text",
    "value": "1 text, 2 type, 3 text, 4 entry*",
    "type": "1 tensor type, 6 text",
    "tensor type": "1 int, 2 shape",
    "shape": "1 dimension*",
    "dimension": "1 int, 2 text, 3 text",
}


def _by_tag(fields: str) -> dict[int, tuple[str, bool]]:
    """Return content and repetition of each field by its tag, the number in front of it."""
    found = {}
    for each in fields.split(", "):
        number, _, kind = each.partition(" ")
        kind, repeated = kind.removesuffix("*"), kind.endswith("*")
        found[int(number) << 3 | {"int": _VARINT, "float": _FIXED32}.get(kind, _BYTES)] = (kind, repeated)
    return found


_FIELDS = {message: _by_tag(fields) for message, fields in _MESSAGES.items()}


def summarize_onnx(data: bytes | mmap) -> OnnxSummary:
    """Read the outline of a ModelProto from all of its bytes.

    Raises:
        OnnxError: when they are not a ModelProto, or one in another form than protobuf writes.
    """
    found = OnnxSummary()
    graphs = 0
    for number, kind, value in _read("model", memoryview(data)):
        if number == 1:
            found.ir_version = _version(value)
        elif kind == "opset":
            opset = {number: value for number, _, value in _read(kind, value)}
            _add(found.opsets, _domain(opset.get(1)), _version(opset.get(2, 0)), "opsets")
        elif kind == "property":
            _add(found.metadata, *_pair(kind, value), "metadata entries")
        else:
            graphs += kind == "graph"
            _add_facts(kind, value, found)
    if not found.ir_version or not graphs or not found.opsets:
        raise OnnxError("it has no ONNX version, graph or operator set")
    return found


def _add_facts(kind: str, value: Any, found: OnnxSummary) -> None:
    """Add the facts in a field of this kind, and in the messages inside it, to the outline."""
    if kind == "subgraph":
        found.subgraphs = True
    elif kind == "function":
        found.functions = True
    elif kind == "node":
        found.nodes += 1
        domain = None
        for _, inner, each in _read(kind, value):
            if inner == "domain":
                domain = each
            else:
                _add_facts(inner, each, found)
        found.domains.add(_domain(domain))
    elif kind == "tensor":
        _add_tensor(value, found)
    elif kind in _FIELDS:
        for _, inner, each in _read(kind, value):
            if inner in _FIELDS or inner == "subgraph":
                _add_facts(inner, each, found)


def _add_tensor(message: memoryview, found: OnnxSummary) -> None:
    places: dict[str, str] = {}
    outside = 0
    for number, kind, value in _read("tensor", message):
        if kind == "place":
            _add(places, *_pair(kind, value), "places of one tensor")
        elif number == 14:
            outside = value
        else:
            _add_facts(kind, value, found)
    if outside not in (0, 1) or bool(outside) != bool(places.get("location")):
        raise OnnxError("it is no ONNX model (a tensor whose values are in another file, and are not)")
    if outside:
        found.external_data = True
        found.data_files.add(places["location"])


def _read(kind: str, message: memoryview) -> Iterator[tuple[int, str, Any]]:
    """Yield the fields of one message, in order: number, content, and its integer or its bytes."""
    fields, found = _FIELDS[kind], set[int]()
    position, end = 0, len(message)
    while position < end:
        # Most numbers have one byte; without a call for these it takes nearly half of the time.
        if (tag := message[position]) < 0x80:
            position += 1
        else:
            tag, position = _varint(message, position)
        if tag not in fields:
            raise OnnxError(
                f"field {tag >> 3:,} of type {tag & 7} in message {kind}, which no exported model has"
            )
        inner, repeated = fields[tag]
        if not repeated:
            if tag in found:
                raise OnnxError(f"field {tag >> 3} twice in message {kind}, which holds it once")
            found.add(tag)
        value = 4  # or the number itself, or how many bytes follow
        if inner != "float":
            if position < end and (value := message[position]) < 0x80:
                position += 1
            else:
                value, position = _varint(message, position)
        if inner == "int":
            yield tag >> 3, inner, value
            continue
        if value > end - position:
            raise OnnxError(f"it is cut short: a field of {value:,} bytes where {end - position:,} are left")
        yield tag >> 3, inner, message[position : position + value]
        position += value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at a position, of 64 bits at most and as few bytes as possible, and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise OnnxError("it is cut short: it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64 or (byte == 0 and shift):
                raise OnnxError(
                    "it is no protobuf (a number of more than 64 bits, or longer than it need be)"
                )
            return value, position
    raise OnnxError("it is no protobuf (a number of more than ten bytes)")


def _add(entries: dict[str, Any], key: str, value: object, what: str) -> None:
    if key in entries:
        raise OnnxError(f"two {what} are called {key!r}")
    entries[key] = value


def _pair(kind: str, message: memoryview) -> tuple[str, str]:
    entry = {number: value for number, _, value in _read(kind, message)}
    return _text(entry.get(1)), _text(entry.get(2))


def _domain(value: memoryview | None) -> str:
    return "" if (name := _text(value)) == "ai.onnx" else name


def _version(value: int) -> int:
    if value >> 63:
        raise OnnxError("it is no ONNX model (a version below zero)")
    return value


def _text(value: memoryview | None) -> str:
    try:
        return "" if value is None else str(value, "utf-8")
    except UnicodeDecodeError:
        raise OnnxError("it is no ONNX model (no UTF-8 where text belongs)") from None
