"""Columns in, columns out, and what Ray and Daft make of it where they are installed."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime import ArtifactError, Classifier
from runtime.batch import label_columns as module
from runtime.batch.label_columns import Labels
from runtime.batch.output import FIELDS, format_record

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "cluster.md"


def batch(images: Path) -> dict[str, list[Any]]:
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    return {"path": list(map(str, paths)), "bytes": [path.read_bytes() for path in paths]}


def test_the_rows_are_those_of_one_machine(model: Path, images: Path) -> None:
    given = batch(images)
    found = Labels(model, top=2)(given)
    assert list(found) == list(FIELDS)
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    expected = list(map(format_record, Classifier(model, top=2).stream(map(Path, given["path"]))))
    assert json.dumps(rows) == json.dumps(expected)
    assert {row["label"] for row in rows} == {"red", "green", "blue", None}


def test_a_null_and_an_error_are_rows(model: Path, images: Path) -> None:
    red = (images / "a.png").read_bytes()
    nan = float("nan")  # how pandas says null
    given = {"path": list("abcd"), "bytes": [None, nan, red, red], "error": [None, nan, "no access", None]}
    found = Labels(model)(given)
    assert found["error"] == ["it has no content (null)"] * 2 + ["no access", None]
    assert found["label"] == [None, None, None, "red"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": []}, "found no bytes"),
        ({"path": ["a", "b"], "bytes": [b""]}, "found path 2, bytes 1"),
        ({"path": ["a"], "bytes": [b""], "error": []}, "error 0"),
    ],
)
def test_columns_that_do_not_fit_are_refused(given: dict[str, list[Any]], said: str, model: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Labels(model)(given)


def test_the_digest_is_pinned_when_it_is_made(model: Path, make_model: Any) -> None:
    labels = pickle.loads(pickle.dumps(Labels(model)))
    make_model(labels=("one", "two", "three"))
    with pytest.raises(ArtifactError, match="its SHA-256 is"):
        labels({"path": ["a"], "bytes": [b""]})
    with pytest.raises(ArtifactError, match="its SHA-256 is"):
        Labels(model, sha256="0" * 64)


def test_a_process_opens_the_model_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    inner = Classifier.__init__

    def count(self: Classifier, *given: Any, **named: Any) -> None:
        opened.append(named["threads"])
        inner(self, *given, **named)

    monkeypatch.setattr(Classifier, "__init__", count)
    monkeypatch.setattr(module, "_opened", {})
    for labels in [Labels(model), pickle.loads(pickle.dumps(Labels(model)))] * 2:
        labels({"path": ["a"], "bytes": [b""]})
    assert opened == [1]  # one opening, one thread


def test_a_model_that_arrives_as_bytes_must_have_the_digest(
    model: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the node of a cluster, where no file of that path need exist."""
    monkeypatch.setattr(module, "_opened", {})
    labels, content = Labels(model), model.read_bytes()
    model.unlink()
    other = make_model("other.onnx", labels=("one", "two", "three"))
    with pytest.raises(ArtifactError, match="its SHA-256 is"):
        labels.classifier(other.read_bytes)
    assert labels.classifier(lambda: content).info.sha256 == labels.sha256
    assert labels({"path": ["a"], "bytes": [b""]})["label"] == [None]


def snippet(engine: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    (found,) = [block for block in blocks if f"import {engine}" in block]
    return found


@pytest.mark.parametrize("engine", ["ray", "daft"])
def test_the_documented_snippets_run(engine: str, make_model: Any, launch: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"needs {engine}; make ray installs it into an environment of its own")
    make_model("model.int8.onnx")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), (250, 10, 10)).save(tmp_path / "photos" / "red.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"x")
    tell = "import json; json.dump([[row[name] for name in NAMES] for row in rows], open('rows', 'w'))"
    tell = tell.replace("NAMES", "('path', 'label', 'error')")
    code, said = launch("-c", f"import os; os.chdir({str(tmp_path)!r})\n{snippet(engine)}\n{tell}").wait()
    assert code == 0, said
    rows = json.loads((tmp_path / "rows").read_text())
    assert {Path(path).name: label for path, label, _ in rows} == {"red.png": "red", "broken.jpg": None}
    assert all((label is None) == bool(error) for _, label, error in rows)
