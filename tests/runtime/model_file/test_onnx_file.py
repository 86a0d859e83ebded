"""The reader of .onnx files sees what protobuf sees, or refuses: compared with onnx's own parser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto

from runtime.model_file.onnx_file import OnnxError, OnnxSummary, summarize_onnx
from tests.support.onnx_mutants import (
    FIXED32,
    FIXED64,
    MODELS,
    VARINT,
    Field,
    bytes_of,
    change_at,
    field_at,
    mutants,
    outside,
    root_of,
    with_data,
    with_training,
)

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
    assert facts_of(summarize_onnx(model.SerializeToString())) == facts_of_onnx(model)


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
        summarize_onnx(changed(EVERY_MESSAGE[message], FORMS[form]))


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
        summarize_onnx(changed(path, change))


def test_the_training_of_a_model_counts_as_its_subgraphs() -> None:
    assert summarize_onnx(with_training().SerializeToString()).subgraphs


def compare_with_onnx(count: int, seed: int) -> Counter[str]:
    """Count what became of mutants.

    Raises:
        AssertionError: for one that is read here and in which onnx sees something else.
    """
    tally = Counter[str]()
    for content in mutants(count, seed):
        model = parsed_by_onnx(content)
        tally["read by onnx"] += model is not None
        try:
            found = summarize_onnx(content)
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
