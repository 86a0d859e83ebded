"""Models with several labels per image: exported, measured, judged by limits, and read in JavaScript."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from calibration.measure.drift import SetDrift, measure_drift
from calibration.search import Budget
from export.__main__ import main
from export.check_options import open_export_images
from export.options import Options
from export.report.conclusion import judge_limits
from export.report.evidence import find_evidence_warnings
from runtime import Classifier, read_metadata
from runtime.__main__ import main as label
from tests.support.color_table import write_color_table
from vit.__main__ import main as vit
from vit.data.datasets import DataError, Images, open_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_table(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "colors"
    words = ["train", "--data", str(table), "--out", str(out), "--preset", "fashion-quick", "--epochs", "4"]
    small = ["--image-size", "16", "--patch-size", "8", "--batch", "16", "--set", "holdout=0.2"]
    assert vit([*words, *small]) == 0
    return out


@pytest.fixture(scope="module")
def exported(run: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    words = [str(run), "--quantize", "--calibration", str(table), "--out", str(out), "--samples", "32"]
    assert main([*words, "--max-drift", "50", "--min-agreement", "50"]) == 0
    return out


def test_both_files_have_the_thresholds_of_the_checkpoint(exported: Path, run: Path) -> None:
    from vit.document import read_document

    for name in ("model.onnx", "model.int8.onnx"):
        metadata = read_metadata(exported / name)
        assert metadata.thresholds == read_document(run).thresholds
        assert metadata.temperature == 1.0


def test_the_report_speaks_of_label_sets(exported: Path, table: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    float32, int8 = (report["models"][name] for name in ("float32", "int8"))
    assert {"map", "f1"} < set(float32)
    drift = int8["drift"]
    assert drift["map_drop"] == pytest.approx(float32["map"] - int8["map"])
    assert drift["images"] == 60
    assert len(int8["changed"]) == pytest.approx(drift["images"] * (1 - drift["agreement"] / 100))
    assert report["thresholds"] == list(read_metadata(exported / "model.onnx").thresholds)
    assert [set(each) for each in report["classes"]] == [{"index", "label", "images", "f1"}] * 3
    assert "reliability" not in report
    assert "points of mAP lost" in report["verdict"]["text"]
    page = (exported / "report.html").read_text()
    for wrong in (r"top-1", r"taken for what", r"temperature", r"McNemar", r"Tango"):
        assert re.search(wrong, page, re.IGNORECASE) is None, wrong
    for right in ("Mean average precision", "F1 of all labels", "Exactly the true labels", "mAP change"):
        assert right in page
    assert ".labels" in page
    # The figures are those of what the runtime answers.
    images = open_images(table, "test")
    with Classifier(exported / "model.int8.onnx") as classify:
        found = [{each.label for each in classify(path).labels} for path in images.items]
    truth = [{images.labels[i] for i in np.flatnonzero(row)} for row in images.targets]
    hits = sum(len(a & b) for a, b in zip(found, truth, strict=True))
    f1 = 200 * hits / (sum(map(len, found)) + sum(map(len, truth)))
    assert int8["f1"] == pytest.approx(f1)


def test_javascript_gives_the_same_labels_and_scores(exported: Path, table: Path, tmp_path: Path) -> None:
    if shutil.which("node") is None or not (ROOT / "javascript" / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    images = [str(path) for path in open_images(table, "test").items]
    command = ["node", "javascript/classify.mjs", str(exported / "model.int8.onnx"), *images]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert label([str(exported), *images, "--output", str(tmp_path / "lines.jsonl")]) == 0
    ours = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    assert {len(each["labels"]) for each in ours} >= {0, 1, 2}
    for mine, other in zip(ours, theirs, strict=True):
        assert set(other) == {"path", "labels", "error"}
        assert [each["label"] for each in other["labels"]] == [each["label"] for each in mine["labels"]]
        assert [each["score"] for each in other["labels"]] == pytest.approx(
            [each["score"] for each in mine["labels"]], abs=1e-5
        )


def test_limits_judge_map_and_label_sets() -> None:
    random = np.random.default_rng(0)
    targets = random.random((2000, 3)) < 0.3
    exact = (random.normal(size=targets.shape) + 4 * targets - 2).astype(np.float32)
    near = exact + 0.001 * random.normal(size=exact.shape).astype(np.float32)
    far = exact + 3 * random.normal(size=exact.shape).astype(np.float32)
    for variant, status in ((near, "met"), (far, "missed")):
        drift = measure_drift(exact, variant, targets, None, (0.5,) * 3)
        found = judge_limits({"int8": Budget(max_drift=0.5, min_agreement=98.0)}, {"int8": drift})
        assert [each.status for each in found.limits] == [status, status]
        assert "mAP" in found.limits[0].text
        assert "top-1" not in found.text
    few = measure_drift(exact[:100], near[:100], targets[:100], None, (0.5,) * 3)
    (open_limit,) = judge_limits({"int8": Budget(max_drift=0.5)}, {"int8": few}).limits
    assert open_limit.status == "not judged"
    assert "the drop of mAP lies between" in open_limit.doubt
    assert open_limit.images_needed > 100
    assert isinstance(few, SetDrift)


def test_a_search_measures_label_sets(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    search = report["search"] if "search" in report else report["models"]["int8"].get("search")
    assert search is None or "map" in search["after"]


def test_a_model_no_better_than_chance_is_reported() -> None:
    random = np.random.default_rng(0)
    targets = random.random((400, 3)) < 0.4
    images = Images([np.zeros((1, 1, 3), np.uint8)] * 400, targets, ("a", "b", "c"), "memory")
    logits = random.normal(size=targets.shape).astype(np.float32)

    def sentences(rows: np.ndarray) -> list[str]:
        found = find_evidence_warnings(images, None, images.labels, rows)
        return [each.sentence for each in found if "no better than chance" in each.sentence]

    (sentence,) = sentences(logits)
    assert "mAP of" in sentence
    assert sentences(logits + 2 * targets) == []


def test_folders_of_classes_are_measured_without_labels(table: Path, photos: Path) -> None:
    options = Options(calibration=str(photos), quantize=True)
    found = open_export_images(options, ("blue", "green", "red"), several=True)
    assert found.evaluation.targets is None
    assert any("the model gives several: measured without known labels" in note for note in found.notes)
    limited = Options(evaluate=str(photos), fp16=True, max_drift=1.0)
    with pytest.raises(DataError, match="a table of images and labels"):
        open_export_images(limited, ("blue", "green", "red"), several=True)
    with pytest.raises(DataError, match="the model expects one label per image"):
        open_export_images(Options(calibration=str(table), quantize=True), ("blue", "green", "red"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    for index in range(16):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index, 0, 0)).save(path)
    return tmp_path / "photos"
