"""Several labels per image: scores, thresholds, result lines, folders, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import ArtifactError, Classifier
from runtime.__main__ import main
from runtime.batch.label_columns import Labels
from runtime.model_file.metadata import Metadata
from runtime.results import explain_unsure, make_prediction
from tests.runtime.conftest import LABELS, MakeModel

THRESHOLDS = (0.999, 0.6, 0.99)


@pytest.fixture
def several(make_model: MakeModel) -> Path:
    """Of a mean of 25 or more in a channel the logit is 2.5, the score 0.92."""
    return make_model(thresholds=THRESHOLDS)


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    folder = tmp_path / "colors"
    folder.mkdir()
    for name, color in (("blue", (0, 30, 250)), ("dark", (0, 0, 0)), ("white", (250, 250, 250))):
        Image.new("RGB", (40, 40), color).save(folder / f"{name}.png")
    return folder


def test_scores_are_sigmoids_and_labels_reach_their_thresholds() -> None:
    logits = np.array([3.0, 1.0, 2.0], np.float32)
    found = make_prediction(logits, LABELS, 2, thresholds=(0.99, 0.5, 0.5))
    assert [each.label for each in found.labels] == ["blue", "green"]
    assert (found.label, found.index) == ("blue", 2)
    assert found.score == found.labels[0].score == pytest.approx(1 / (1 + np.exp(-2)))
    assert [each.label for each in found.top] == ["red", "blue"]  # by score, whatever their thresholds
    none = make_prediction(logits, LABELS, 1, thresholds=(1.0, 1.0, 1.0))
    assert (none.label, none.index, none.labels) == (None, None, ())
    assert none.score == none.top[0].score == pytest.approx(1 / (1 + np.exp(-3)))
    assert explain_unsure(none, None) is None  # no label is an answer
    assert make_prediction(logits, LABELS, 1).labels is None


@pytest.mark.filterwarnings("error")
def test_a_threshold_is_reached_by_its_own_score_and_by_any_logit_of_the_range() -> None:
    logits = np.array([0.0, 3e38, -3e38], np.float32)
    found = make_prediction(logits, LABELS, 3, thresholds=(0.5, 1.0, 0.0))
    assert [(each.label, each.score) for each in found.labels] == [
        ("green", 1.0),
        ("red", 0.5),
        ("blue", 0.0),
    ]


def test_the_classifier_reads_the_thresholds_of_the_file(several: Path, colors: Path) -> None:
    with Classifier(several) as classify:
        assert classify.info.thresholds == THRESHOLDS
        found = {
            Path(each.image).stem: [one.label for one in each.prediction.labels]
            for each in classify.stream(sorted(colors.iterdir()))
        }
    assert found == {"blue": ["blue", "green"], "dark": [], "white": ["red", "green", "blue"]}
    with pytest.raises(ArtifactError, match="thresholds of their own; leave min_score out"):
        Classifier(several, min_score=0.5)


def test_lines_of_both_forms(several: Path, colors: Path, tmp_path: Path, capsys) -> None:
    (colors / "broken.png").write_bytes(b"no")
    out = tmp_path / "out.jsonl"
    assert main([str(several), str(colors), "--output", str(out), "--top", "1"]) == 1
    lines = {Path(row["path"]).stem: row for row in map(json.loads, out.read_text().splitlines())}
    assert [each["label"] for each in lines["blue"]["labels"]] == ["blue", "green"]
    assert lines["blue"]["labels"][0] == {"label": "blue", "index": 2, "score": pytest.approx(1, abs=1e-6)}
    assert (lines["dark"]["labels"], len(lines["dark"]["top"]), lines["dark"]["error"]) == ([], 1, None)
    assert lines["broken"]["labels"] is None
    said = capsys.readouterr().err
    assert "1 failed, 1 without a label" in said
    assert "2  blue" in said
    table = tmp_path / "out.csv"
    assert main([str(several), str(colors), "--output", str(table)]) == 1
    with table.open(newline="") as opened:
        rows = {Path(row["path"]).stem: row for row in csv.DictReader(opened)}
    assert list(rows["blue"]) == ["path", "labels", "top", "error"]
    assert json.loads(rows["blue"]["labels"]) == lines["blue"]["labels"]
    assert (rows["dark"]["labels"], rows["broken"]["labels"]) == ("[]", "")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_run_resumes(several: Path, colors: Path, tmp_path: Path, name: str) -> None:
    whole, cut = tmp_path / "whole" / name, tmp_path / "cut" / name
    for out in (whole, cut):
        out.parent.mkdir()
        assert main([str(several), str(colors), "--output", str(out)]) == 0
    cut.write_bytes(cut.read_bytes()[:-20])  # the last line is unfinished
    assert main([str(several), str(colors), "--output", str(cut), "--resume"]) == 0
    assert cut.read_bytes() == whole.read_bytes()
    cut.write_bytes(cut.read_bytes().replace(b"labels", b"lebals", 1))
    assert main([str(several), str(colors), "--output", str(cut), "--resume"]) == 2


def test_an_image_is_linked_into_the_folder_of_each_label(
    several: Path, colors: Path, tmp_path: Path
) -> None:
    into = tmp_path / "sorted"
    assert main([str(several), str(colors), "--sort-into", str(into)]) == 0
    found = sorted(str(each.relative_to(into)) for each in into.glob("*/*"))
    assert found == ["blue/blue.png", "blue/white.png", "green/blue.png", "green/white.png", "red/white.png"]


def test_columns_of_one_label_refuse_such_a_model(several: Path) -> None:
    with pytest.raises(ArtifactError, match="several labels per image, and these columns hold one"):
        Labels(several)


def test_the_command_refuses_a_minimum(several: Path, colors: Path, capsys) -> None:
    assert main([str(several), str(colors), "--min-score", "0.5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "thresholds",
    [[], [0.5], [0.5, 0.5, 1.5], [0.5, 0.5, -0.1], [0.5, 0.5, True], [0.5, 0.5, None], "abc", 0.5, [0.5] * 4],
)
def test_other_thresholds_are_refused(several: Path, thresholds) -> None:
    with Classifier(several) as classify:
        text = Metadata(**{n: getattr(classify.info, n) for n in Metadata.__dataclass_fields__}).to_json()
    assert Metadata.from_json(text).thresholds == THRESHOLDS
    document = json.loads(text)
    with pytest.raises(ArtifactError, match="thresholds must be null, or one number"):
        Metadata.from_json(json.dumps(document | {"thresholds": thresholds}))
    with pytest.raises(ArtifactError, match="thresholds must be null, or one number"):
        Metadata.from_json(json.dumps(document | {"temperature": 2.0}))
    del document["thresholds"]
    assert Metadata.from_json(json.dumps(document)).thresholds is None
    assert "thresholds" not in Metadata.from_json(json.dumps(document)).to_json()


def test_the_python_of_the_guide_runs(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "several-labels.md"
    make_model("artifacts/pairs/model.int8.onnx", thresholds=THRESHOLDS)
    Image.new("RGB", (40, 30), (0, 40, 250)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    exec(compile(block, str(page), "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["blue", "green"]
