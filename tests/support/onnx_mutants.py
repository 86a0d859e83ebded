"""Mutants of .onnx files: bytes changed at random, and fields in forms that protobuf never writes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor
from onnx import TensorProto, helper, numpy_helper

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


# Models that hold every fact -------------------------------------------------------------------------------


def plain() -> onnx.ModelProto:
    """A graph with attributes of several kinds, and tensors in several places."""
    value = numpy_helper.from_array(np.arange(3, dtype=np.float32), "value")
    nodes = [
        helper.make_node("Constant", [], ["value"], value=value),
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("LeakyRelu", ["turned"], ["logits"], alpha=0.5, domain="ai.onnx"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 2, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 2])],
        [helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0]), value],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"vit_edge": '{"version": 2}', "other": "1"})
    return model


def outside(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_data() -> onnx.ModelProto:
    model = plain()
    model.graph.initializer.append(outside("w", "model.onnx.data"))
    model.graph.node[0].attribute[0].t.CopyFrom(outside("v", "model.onnx.data"))
    indices = numpy_helper.from_array(np.arange(2), "i")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=outside("s", "other.data"), indices=indices, dims=[4])
    )
    return model


def with_a_subgraph() -> onnx.ModelProto:
    model = plain()
    model.graph.node[2].attribute.append(helper.make_attribute("body", plain().graph))
    return model


def of_another_domain() -> onnx.ModelProto:
    model = plain()
    model.graph.node[2].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def with_a_function() -> onnx.ModelProto:
    model = plain()
    model.functions.append(onnx.FunctionProto(name="f", domain="own", node=model.graph.node[:1]))
    return model


def with_training() -> onnx.ModelProto:
    model = plain()
    model.training_info.add().algorithm.CopyFrom(model.graph)
    return model


MODELS = (plain, with_data, with_a_subgraph, of_another_domain, with_a_function, with_training)


# A message as fields, in any form that its bytes can have --------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field of a message, with its bytes or the fields in it, and how its numbers are written."""

    number: int
    wire: int
    value: int | bytes | tuple[Field, ...]
    tag_bits: int = 0  # added to the tag above its 32 bits
    padding: tuple[int, int] = (0, 0)  # bytes of zero after the tag, and after the length or the number

    def encode(self) -> bytes:
        value = self.value
        content = b"".join(f.encode() for f in value) if isinstance(value, tuple) else value
        head = varint((self.number << 3 | self.wire) + (self.tag_bits << 32), self.padding[0])
        if isinstance(content, int):
            return head + varint(content, self.padding[1])
        if self.wire == 3:  # a group ends with a tag of its own
            return head + content + varint(self.number << 3 | 4)
        return head + (varint(len(content), self.padding[1]) if self.wire == BYTES else b"") + content


def varint(number: int, padding: int = 0) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    for _ in range(padding):
        found[-1] |= 0x80
        found.append(0)
    return bytes(found)


def fields_of(content: bytes, kind: Descriptor) -> tuple[Field, ...]:
    """The fields of what onnx wrote; messages as their fields."""
    found, position = [], 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(content):
        tag = number()
        value: Any
        if tag & 7 == VARINT:
            value = number()
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(tag & 7) or number()
            value = content[position : position + length]
            position += length
            inner = kind.fields_by_number[tag >> 3].message_type
            value = value if inner is None else fields_of(value, inner)
        found.append(Field(tag >> 3, tag & 7, value))
    return tuple(found)


def root_of(model: onnx.ModelProto) -> Field:
    return Field(0, BYTES, fields_of(model.SerializeToString(), onnx.ModelProto.DESCRIPTOR))


def bytes_of(root: Field) -> bytes:
    assert isinstance(root.value, tuple)
    return b"".join(field.encode() for field in root.value)


def places_of(message: Field, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The path of every field, as indices."""
    if isinstance(message.value, tuple):
        for index, field in enumerate(message.value):
            yield (*path, index)
            yield from places_of(field, (*path, index))


def change_at(message: Field, path: tuple[int, ...], change: Callable[[Field], tuple[Field, ...]]) -> Field:
    """The message with one field replaced by others."""
    assert isinstance(message.value, tuple)
    before, field, after = message.value[: path[0]], message.value[path[0]], message.value[path[0] + 1 :]
    changed = change(field) if len(path) == 1 else (change_at(field, path[1:], change),)
    return replace(message, value=(*before, *changed, *after))


def field_at(message: Field, path: tuple[int, ...]) -> Field:
    for index in path:
        assert isinstance(message.value, tuple)
        message = message.value[index]
    return message


# Mutants ---------------------------------------------------------------------------------------------------


def mutate_field(field: Field, donor: Field, draw: random.Random) -> tuple[Field, ...]:
    """One field in another form, or with another beside it."""
    value = field.value
    empty = replace(field, value=(0 if isinstance(value, int) else b"" if isinstance(value, bytes) else ()))
    other = replace(field, value=donor.value if type(donor.value) is type(value) else value)
    split = draw.randrange(len(value) + 1) if isinstance(value, tuple) else 0
    halves = (
        (replace(field, value=value[:split]), replace(field, value=value[split:]))
        if isinstance(value, tuple)
        else (field, other)
    )
    choices: list[tuple[Field, ...]] = [
        (),
        (field, field),
        (empty, field),
        (field, empty),
        (other,),
        (field, other),
        (field, donor),
        (donor,),
        halves,
        (replace(field, tag_bits=draw.choice([1, 2, 7, 8, 2**20, 2**31 - 1])),),
        (empty, replace(field, tag_bits=1)),
        (replace(field, padding=(draw.randrange(9), draw.randrange(9))),),
        (replace(field, number=draw.choice([1, 2, 5, 7, 8, 13, 14, 20, 25, 26, 27, 1000, 2**29 - 1])),),
        (replace(field, number=field.number + 2**29),),
        (field, Field(draw.randrange(1, 40), VARINT, draw.randrange(3))),
        (Field(draw.randrange(1, 40), BYTES, draw.randbytes(draw.randrange(4))), field),
        (replace(field, wire=FIXED64, value=draw.randbytes(8)),),
        (replace(field, wire=FIXED32, value=draw.randbytes(4)),),
        (Field(field.number, 3, (field,)), field),
    ]
    if isinstance(value, int):
        large = draw.choice([0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1])
        choices += [(replace(field, value=large),), (replace(field, wire=BYTES, value=varint(value)),)] * 3
    elif isinstance(value, bytes) and value:
        at = draw.randrange(len(value))
        swapped = value[:at] + draw.choice([b"\xff", b"\x00", b"a", b""]) + value[at + 1 :]
        choices += [(replace(field, value=swapped),), (replace(field, wire=VARINT, value=value[0]),)]
    return draw.choice(choices)


def mutate_tree(roots: list[Field], draw: random.Random) -> bytes:
    """One to three fields changed, the lengths around them right."""
    root = draw.choice(roots)
    for _ in range(draw.randrange(1, 4)):
        if not (places := list(places_of(root))):
            break
        # first a depth, so that the few fields near the root are changed as often as the many below
        depth = draw.choice(sorted({len(place) for place in places}))
        giver = draw.choice(roots)
        donor = field_at(giver, draw.choice(list(places_of(giver))))
        place = draw.choice([place for place in places if len(place) == depth])
        root = change_at(root, place, lambda field, donor=donor: mutate_field(field, donor, draw))
    return bytes_of(root)


def mutate_bytes(contents: list[bytes], draw: random.Random) -> bytes:
    """Bytes and bits changed, taken away, doubled and inserted."""
    found = bytearray(draw.choice(contents))
    for _ in range(draw.randrange(1, 4)):
        at, length = draw.randrange(len(found)), draw.randrange(1, 12)
        kind = draw.randrange(5)
        if kind == 0:
            found[at] = draw.randrange(256)
        elif kind == 1:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length]
        else:
            found[at:at] = draw.randbytes(draw.randrange(1, 4))
        if not found:
            break
    return bytes(found)


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Mutants of models that hold every fact: two of three changed as messages, the others as bytes."""
    draw = random.Random(seed)
    models = [make() for make in MODELS]
    roots, contents = [root_of(each) for each in models], [each.SerializeToString() for each in models]
    for index in range(count):
        yield mutate_tree(roots, draw) if index % 3 else mutate_bytes(contents, draw)
