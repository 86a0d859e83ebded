"""The document in a model file: it is strict, small, and parsed when a monitor asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import ArtifactError, Classifier, Embedder
from runtime.monitor.document import MOST_BYTES, FieldStatistics
from runtime.monitor.measure import EMBEDDING, IMAGE
from tests.support.field_statistics import add_statistics, describe_rows

OUTPUTS = {"logits": 3, "embedding": 8}


@pytest.fixture
def statistics() -> FieldStatistics:
    random = np.random.default_rng(0)
    answers = {name: random.normal(size=5000) for name in EMBEDDING}
    rows = random.normal(size=(5000, len(IMAGE))) * 100
    return describe_rows(rows, score=random.uniform(size=5000), **answers)


def test_it_comes_back_and_is_small(statistics: FieldStatistics) -> None:
    text = statistics.to_json()
    assert FieldStatistics.from_json(text, OUTPUTS) == statistics
    assert len(text) < MOST_BYTES / 2


def test_the_share_of_unsure_images_is_about_right(statistics: FieldStatistics) -> None:
    assert statistics.estimate_unsure(0.42) == pytest.approx(0.42, abs=0.02)
    assert statistics.estimate_unsure(1) == 1
    assert statistics.estimate_unsure(0) == 0


def change(document: Any, *keys: Any, value: Any) -> None:
    *path, last = keys
    for key in path:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["version"], 2),
        (["version"], True),
        (["images"], 49),
        (["images"], 5001),
        (["images"], "many"),
        (["more"], 1),
        (["statistics"], []),
        (["statistics", "more"], {}),
        (["statistics", "peak"], 1),
        (["statistics", "peak", "more"], 1),
        (["statistics", "peak", "edges"], [1, 0]),
        (["statistics", "peak", "edges"], list(range(40))),
        (["statistics", "peak", "edges", 0], "x"),
        (["statistics", "peak", "edges", 0], -1e300),
        (["statistics", "peak", "counts", 3], -1),
        (["statistics", "peak", "counts", 3], 0.5),
        (["statistics", "peak", "median"], 1e9),
        (["statistics", "peak", "median"], None),
        (["statistics", "peak", "deviation"], -1),
        (["scores"], None),
        (["scores", 0], 10**30),
        (["scores"], [5000]),
    ],
    ids=str,
)
def test_other_documents_are_refused(statistics: FieldStatistics, keys: list[Any], value: Any) -> None:
    document = json.loads(statistics.to_json())
    change(document, *keys, value=value)
    with pytest.raises(ArtifactError, match=r"field statistics are not usable.*export the model again"):
        FieldStatistics.from_json(json.dumps(document), OUTPUTS)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"a": NaN}', "[" * 5000, "x" * 9000])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        FieldStatistics.from_json(text, OUTPUTS)


def test_statistics_of_another_model_are_refused(statistics: FieldStatistics) -> None:
    with pytest.raises(ArtifactError, match="statistics"):
        FieldStatistics.from_json(statistics.to_json(), {"embedding": 8})


def test_a_damaged_document_is_refused_by_a_monitor_and_by_nothing_else(make_model: Any) -> None:
    path = add_statistics(make_model(), "{}")
    assert Classifier(path)(np.full((9, 9, 3), (255, 0, 0), np.uint8)).label == "red"
    with pytest.raises(ArtifactError, match=r"model\.onnx: .*field statistics"):
        Classifier(path, monitor=True)


def test_a_file_without_statistics_is_refused(model: Path, make_embedding_model: Any) -> None:
    with pytest.raises(ArtifactError, match=r"holds no field statistics.*50 images or more"):
        Classifier(model, monitor=True)
    with pytest.raises(ArtifactError, match="holds no field statistics"):
        Embedder(make_embedding_model("other.onnx"), monitor=True)
