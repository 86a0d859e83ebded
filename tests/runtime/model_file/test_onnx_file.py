"""The reader of .onnx files sees what protobuf sees, or refuses: compared with onnx's own parser."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from runtime.model_file.onnx_file import OnnxError, OnnxSummary, summarize

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


# What onnx's parser and ours see ---------------------------------------------------------------------------


def tensors_of(message: Any) -> Iterator[TensorProto]:
    """The tensors in a message, those of subgraphs and training left out: a model with these is refused."""
    if isinstance(message, TensorProto):
        yield message
    elif not isinstance(message, onnx.FunctionProto | onnx.TrainingInfoProto):
        for field, value in message.ListFields():
            if field.message_type is not None and field.name not in ("g", "graphs"):
                for each in value if field.is_repeated else [value]:
                    yield from tensors_of(each)


def unaliased(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def facts_of_onnx(model: onnx.ModelProto) -> dict[str, Any]:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    external = [each for each in tensors_of(model) if each.data_location == TensorProto.EXTERNAL]
    places = [Counter(entry.key for entry in each.external_data) for each in external]
    assert all(count == 1 for each in places for count in each.values()), "one key, two values"
    return {
        "ir_version": model.ir_version,
        "opsets": sorted((unaliased(each.domain), each.version) for each in model.opset_import),
        "metadata": sorted((each.key, each.value) for each in model.metadata_props),
        "nodes": len(model.graph.node),
        "domains": {unaliased(node.domain) for node in model.graph.node},
        "external_data": bool(external),
        "data_files": {e.value for each in external for e in each.external_data if e.key == "location"},
        "subgraphs": any(each.HasField("g") or each.graphs for each in attributes)
        or bool(model.training_info),
        "functions": bool(model.functions),
    }


def facts_of(found: OnnxSummary) -> dict[str, Any]:
    lists = {"opsets": sorted(found.opsets.items()), "metadata": sorted(found.metadata.items())}
    return vars(found) | lists


def parsed_by_onnx(content: bytes) -> onnx.ModelProto | None:
    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError:
        return None


@pytest.mark.parametrize("make", MODELS)
def test_every_fact_is_seen_as_onnx_sees_it(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    assert facts_of(summarize(model.SerializeToString())) == facts_of_onnx(model)


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


# Forms that protobuf reads and never writes ----------------------------------------------------------------


def at(*numbers: int) -> Callable[[Field], tuple[int, ...]]:
    """The path of the first field with these numbers, from the model down."""

    def find(root: Field) -> tuple[int, ...]:
        path: tuple[int, ...] = ()
        for number in numbers:
            fields = field_at(root, path).value
            assert isinstance(fields, tuple)
            path += (next(index for index, each in enumerate(fields) if each.number == number),)
        return path

    return find


def emptied(field: Field) -> Field:
    return replace(field, value=())


def split(field: Field) -> tuple[Field, Field]:
    assert isinstance(field.value, tuple)
    return replace(field, value=field.value[:1]), replace(field, value=field.value[1:])


Change = Callable[[Field], tuple[Field, ...]]
EVERY_MESSAGE = {  # a field of each kind of message
    "model": at(7),
    "opset": at(8, 2),
    "property": at(14, 2),
    "graph": at(7, 1),
    "node": at(7, 1, 5),
    "attribute": at(7, 1, 5, 20),
    "tensor": at(7, 5, 1),
    "sparse tensor": at(7, 15, 1),
    "place": at(7, 5, 13, 2),
    "value": at(7, 11, 2),
    "type": at(7, 11, 2, 1),
    "tensor type": at(7, 11, 2, 1, 2),
    "shape": at(7, 11, 2, 1, 2, 1),
    "dimension": at(7, 11, 2, 1, 2, 1, 2),
}
FORMS: dict[str, Change] = {
    "a tag above 32 bits": lambda field: (replace(field, tag_bits=1),),
    "a tag above 35 bits": lambda field: (replace(field, tag_bits=8),),
    "a tag of six bytes": lambda field: (replace(field, padding=(5, 0)),),
    "a length longer than it need be": lambda field: (replace(field, padding=(0, 1)),),
    "a field that ONNX does not have": lambda field: (field, Field(999, VARINT, 1)),
    "a group": lambda field: (field, Field(999, 3, ())),
    "field 0": lambda field: (field, Field(0, VARINT, 1)),
    "another wire type": lambda field: (field, Field(field.number, FIXED32, b"1234")),
    "8 bytes": lambda field: (field, Field(field.number, FIXED64, b"12345678")),
}


def changed(path: Callable[[Field], tuple[int, ...]], change: Change) -> bytes:
    model = with_data()
    model.graph.initializer.insert(0, outside("first", "model.onnx.data"))
    root = root_of(model)
    return bytes_of(change_at(root, path(root), change))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("message", EVERY_MESSAGE)
def test_a_form_that_protobuf_does_not_write_is_refused_in_every_message(message: str, form: str) -> None:
    with pytest.raises(OnnxError):
        summarize(changed(EVERY_MESSAGE[message], FORMS[form]))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        pytest.param(at(7), split, id="a graph in two parts, which are merged"),
        pytest.param(at(7), lambda field: (field, emptied(field)), id="a graph and an empty one"),
        pytest.param(at(7, 1, 5, 5), split, id="a tensor in two parts"),
        pytest.param(at(7, 15, 1), split, id="sparse values in two parts"),
        pytest.param(at(7, 11, 2), split, id="a type in two parts"),
        pytest.param(at(1), lambda field: (field, field), id="two versions"),
        pytest.param(at(8), lambda field: (field, field), id="an operator set twice"),
        pytest.param(at(8, 2), lambda field: (replace(field, value=2**63),), id="a version below zero"),
        pytest.param(at(8, 2), lambda field: (replace(field, value=2**64 + 20),), id="65 bits"),
        pytest.param(at(14, 2), lambda field: (field, replace(field, value=b"{}")), id="two values of a key"),
        pytest.param(at(14), lambda field: (field, field), id="an entry twice"),
        pytest.param(at(14, 1), lambda field: (replace(field, value=b"\xff"),), id="a key not in UTF-8"),
        pytest.param(at(7, 5, 13, 2), lambda field: (field, field), id="two places of a tensor"),
        pytest.param(at(7, 5, 13), lambda field: (field, field), id="a place twice"),
        pytest.param(at(7, 5, 13), lambda field: (), id="a tensor in another file that is not named"),
        pytest.param(at(7, 5, 14), lambda field: (), id="a file named and not used"),
        pytest.param(at(7, 5, 14), lambda field: (replace(field, value=2**32),), id="zero in 33 bits"),
        pytest.param(at(7, 5, 14), lambda field: (field, replace(field, value=0)), id="in a file and not"),
        pytest.param(at(7, 5, 14), lambda field: (replace(field, value=2),), id="an unknown place"),
    ],
)
def test_what_protobuf_would_merge_or_read_otherwise_is_refused(path: Any, change: Change) -> None:
    with pytest.raises(OnnxError):
        summarize(changed(path, change))


def test_the_training_of_a_model_counts_as_its_subgraphs() -> None:
    assert summarize(with_training().SerializeToString()).subgraphs


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


def compare_with_onnx(count: int, seed: int) -> Counter[str]:
    """Count what became of mutants.

    Raises:
        AssertionError: for one that is read here and in which onnx sees something else.
    """
    draw, tally = random.Random(seed), Counter[str]()
    models = [make() for make in MODELS]
    roots, contents = [root_of(each) for each in models], [each.SerializeToString() for each in models]
    for index in range(count):
        content = mutate_tree(roots, draw) if index % 3 else mutate_bytes(contents, draw)
        model = parsed_by_onnx(content)
        tally["read by onnx"] += model is not None
        try:
            found = summarize(content)
        except OnnxError:
            continue
        tally["read here"] += 1
        # What onnx refuses ONNX Runtime refuses, too: nothing runs.
        if model is not None:
            tally["compared"] += 1
            assert facts_of(found) == facts_of_onnx(model), content.hex()
    return tally


def test_mutants_are_refused_or_seen_as_onnx_sees_them() -> None:
    tally = compare_with_onnx(1000, seed=1)
    assert tally["compared"] > 100, tally
    assert tally["read by onnx"] > 400, tally


@pytest.mark.slow
def test_many_mutants_are_refused_or_seen_as_onnx_sees_them() -> None:
    tally = compare_with_onnx(10_000, seed=2)
    assert tally["compared"] > 1000, tally
    assert tally["read by onnx"] > 4000, tally
