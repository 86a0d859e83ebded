"""Every JSON document of a stranger is read by one strict parser: no infinity, no field twice, no depth."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.plan import PLAN_VERSION, PlanError, QuantizationPlan
from export.sources.onnx_description import OnnxModelError, read_description
from runtime import ArtifactError, Metadata, Preprocess
from runtime.errors import InputError
from runtime.model_file.integrity import DATA_KEY, read_data_entry
from runtime.model_file.onnx_file import OnnxSummary
from runtime.strict_json import parse_json, read_field
from vit.document import KEY, CheckpointError, parse_document
from vit.pretrained.description import SourceError, read_json
from vit.training import resume

# Each is put in the place of a value of a document that is right without it.
WRONG = [
    ("1e999", "larger than a float64"),
    ("[-1e400]", "larger than a float64"),
    ('{"a": [{"b": 1e309}]}', "larger than a float64"),
    ("1" + "0" * 400, "larger than a float64"),
    ("1" + "0" * 5000, "larger than a float64|digits"),
    ("NaN", "NaN"),
    ("-Infinity", "Infinity"),
    ('{"a": 1, "a": 1}', "two fields 'a'"),
    ('[{"x": {"\\u0061": 1, "a": 2}}]', "two fields 'a'"),
    ('{"": 1, "": 2}', "two fields ''"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
]
METADATA = Metadata(variant="int8", preprocess=Preprocess(), labels=("a", "b")).to_json()
PLAN = json.dumps({"format": "vit-edge plan", "version": PLAN_VERSION, "target": "any-cpu"})
SPEC = json.dumps({"preprocess": {}, "mean": 0.5, "std": 0.5})


def with_value(document: str, value: str) -> str:
    """Return the text of an object with one more field."""
    return f'{document.strip().removesuffix("}")}, "more": {value}}}'


def in_file(read: Callable[[Path], Any]) -> Callable[[str, Path], Any]:
    def reader(text: str, folder: Path) -> Any:
        path = folder / "document.json"
        path.write_text(text, encoding="utf-8")
        return read(path)

    return reader


def data_entry(text: str, _: Path) -> Any:
    return read_data_entry(OnnxSummary(metadata={DATA_KEY: text}, data_files={"model.onnx.data"}))


READERS: dict[str, tuple[Callable[[str, Path], Any], str, type[InputError]]] = {
    "metadata": (lambda text, _: Metadata.from_json(text), METADATA, ArtifactError),
    "second file": (data_entry, '{"file": "model.onnx.data", "bytes": 1, "sha256": ""}', ArtifactError),
    "plan": (lambda text, _: QuantizationPlan.from_json(text), PLAN, PlanError),
    "description": (in_file(read_description), SPEC, OnnxModelError),
    "config.json": (in_file(read_json), "{}", SourceError),
    "checkpoint": (lambda text, path: parse_document(path, {KEY: text}), "{}", CheckpointError),
    "training state": (
        lambda text, path: resume._read_document(path, {resume.KEY: text}),
        "{}",
        CheckpointError,
    ),
}


@pytest.mark.parametrize(("value", "message"), WRONG, ids=[message for _, message in WRONG])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it(reader: str, value: str, message: str, tmp_path: Path) -> None:
    read, document, error = READERS[reader]
    text = with_value(document, value) if len(document) > 2 else f'{{"more": {value}}}'
    with pytest.raises(error) as caught:
        read(text, tmp_path)
    silent = ("second file", "training state", "plan")
    says_why = reader not in silent or (reader == "plan" and "two" in message)
    assert not says_why or caught.match(message)


@pytest.mark.parametrize("reader", ["metadata", "plan", "description"])
def test_a_field_twice_is_refused_where_it_counts(reader: str, tmp_path: Path) -> None:
    read, document, error = READERS[reader]
    read(document, tmp_path)
    name, value = next(iter(json.loads(document).items()))
    with pytest.raises(error, match=f"two fields '{name}'"):
        read(with_value(document, f'1, "{name}": {json.dumps(value)}'), tmp_path)


@pytest.mark.parametrize("value", ["1e999", "-1e400", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["size", "resize_to", "white_level", "temperature", "measured", "source"])
def test_metadata_have_no_infinity_in_any_field(field: str, value: str) -> None:
    document = json.loads(METADATA)
    inner = document["preprocess"] if field in ("size", "resize_to", "white_level") else document
    inner[field] = {"measured": {"drift": ["?"]}, "source": {"deep": {"er": "?"}}}.get(field, "?")
    with pytest.raises(ArtifactError, match="larger than a float64"):
        Metadata.from_json(json.dumps(document).replace('"?"', value))


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-0.0",
        "1e308",
        "5e-324",
        "1e-999",
        '"1e999"',
        '{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}',
        "1" * 300,
    ],
)
def test_what_json_allows_is_what_python_reads(text: str) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a", str),
        (1, int),
        (1, float),
        (1.5, float),
        (True, bool),
        ({}, dict),
        ([1, "a"], list),
        ([], list[str]),
        (["a"], list[str]),
        ([1, 0.5], list[float]),
    ],
)
def test_a_field_of_its_type_is_returned(value: Any, kind: Any) -> None:
    assert read_field({"x": value}, "x", kind, where="config.json") is value
    assert read_field({"x": value}, "x", kind, where="config.json", default=None) is value


@pytest.mark.parametrize(
    ("document", "kind", "message"),
    [
        ([], str, r"config.json: expected an object, found \[\]"),
        ({}, str, "config.json: expected a field 'x', found none"),
        ({"x": None}, str, "config.json: expected x to be text, found None"),
        ({"x": 1}, str, "config.json: expected x to be text, found 1"),
        ({"x": True}, int, "config.json: expected x to be a whole number, found True"),
        ({"x": 1.0}, int, "config.json: expected x to be a whole number, found 1.0"),
        ({"x": False}, float, "config.json: expected x to be a number, found False"),
        ({"x": 1}, bool, "config.json: expected x to be true or false, found 1"),
        ({"x": ["a", 1]}, list[str], "config.json: expected x to be a list of text, found"),
        ({"x": "ab"}, list[str], "config.json: expected x to be a list of text, found 'ab'"),
    ],
)
def test_a_field_of_another_type_is_refused(document: Any, kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_field(document, "x", kind, where="config.json")


def test_a_field_with_a_default_may_be_absent_or_null() -> None:
    assert read_field({}, "x", str, where="config.json", default="") == ""
    assert read_field({"x": None}, "x", int, where="config.json", default=None) is None
    with pytest.raises(ValueError, match="expected x to be text"):
        read_field({"x": 1}, "x", str, where="config.json", default=None)


def test_many_fields_take_no_longer_than_their_number() -> None:
    """A hundred thousand in milliseconds; a search among those before each one would take minutes."""
    fields = ", ".join(f'"{number}": 0' for number in range(100_000))
    with pytest.raises(ValueError, match="two fields '99999'"):
        parse_json(f'{{{fields}, "99999": 1}}')


def test_the_packages_have_no_other_parser(root: Path) -> None:
    """A plan checks each number; results, notes and profiles of a run of its own may be read plainly."""
    own = {f"runtime/batch/{name}.py" for name in ("output", "cluster_output")}
    own |= {"runtime/batch/keep_unsure.py", "runtime/update/folder.py", "export/card/facts.py"}
    own |= {"runtime/strict_json.py", "runtime/self_test/check.py", "calibration/plan.py"}
    found = set()
    for package in ("runtime", "vit", "calibration", "export"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called in ("json.load", "json.loads") and "json.dumps" not in ast.unparse(node):
                    found.add(str(path.relative_to(root)))
    assert found == own
