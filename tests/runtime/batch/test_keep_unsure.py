"""--keep-unsure and --monitor of python -m runtime."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Preprocess
from runtime.batch.keep_unsure import UnsureImages, read_records
from runtime.command_line import main
from runtime.results import make_prediction
from tests.support.field_statistics import add_statistics, describe_rows, measure_all
from vit.data.datasets import open_images

LABELS = ("red", "green", "blue")


def record(path: str, index: int, score: float) -> dict[str, Any]:
    return {"path": path, "top": [{"label": LABELS[index], "index": index, "score": score}]}


def kept(unsure: UnsureImages) -> dict[str, Any]:
    return {path: each for heap in unsure._classes.values() for _, path, each in heap}


def test_the_least_sure_of_all_classes_and_times_stay() -> None:
    unsure = UnsureImages(60, None)
    for number in range(6000):
        sure = number % 20 != 0
        unsure.offer(record(f"{number}.jpg", number % 3, 0.99 if sure else 0.5))
    found = kept(unsure)
    scores = [each["top"][0]["score"] for each in found.values()]
    assert len(found) == 60
    assert sum(score == 0.5 for score in scores) >= 55
    assert set(Counter(each["top"][0]["index"] for each in found.values()).values()) == {20}
    thirds = Counter(int(path.removesuffix(".jpg")) // 2000 for path in found)
    assert min(thirds.values()) >= 10


def test_images_above_the_score_and_failures_are_no_candidates() -> None:
    unsure = UnsureImages(10, 0.6)
    unsure.offer(record("sure.jpg", 0, 0.6))
    unsure.offer({"path": "broken.jpg", "top": None})
    unsure.offer(record("unsure.jpg", 0, 0.59))
    unsure.offer(record("unsure.jpg", 0, 0.59))
    assert list(kept(unsure)) == ["unsure.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 images of random colors, one broken file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(120):
        color = random.integers(60, 120, 3)
        noisy = color + random.integers(-20, 20, (40, 40, 3))
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_run_in_two_parts_keeps_what_one_run_keeps(
    model: Path, folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--limit", 20, "--top", 2)
    out, whole, parts = tmp_path / f"a.{suffix}", tmp_path / "whole", tmp_path / "parts"
    assert run(model, folder, "--output", out, "--keep-unsure", whole, *options) == 1
    assert f"kept 20 images to label in {whole}" in capsys.readouterr().err
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:70]))  # as after a crash
    assert len(list(read_records(out, suffix))) in (69, 70)  # type: ignore[arg-type]
    assert run(model, folder, "--output", out, "--resume", "--keep-unsure", parts, *options) == 1
    names = [sorted(str(p.relative_to(each)) for p in each.rglob("*.png")) for each in (whole, parts)]
    assert names[0] == names[1]
    assert len(names[0]) == 20
    images = open_images(whole)  # what `vit train` reads
    assert len(images) == 20
    assert set(images.labels or ()) <= set(LABELS)
    for line in (whole / "unsure.jsonl").read_text().splitlines():
        found = json.loads(line)
        assert (whole / found["file"]).read_bytes() == Path(found["path"]).read_bytes()
        assert found["file"].startswith(found["top"][0]["label"] + "/")
    assert len((whole / "unsure.jsonl").read_text().splitlines()) == 20


def test_a_folder_with_files_is_left_alone(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert run(model, folder, "--keep-unsure", mine) == 1  # an empty one is filled
    before = sorted(mine.rglob("*"))
    assert run(model, folder, "--keep-unsure", mine) == 2
    assert "expected a new or empty folder for --keep-unsure, found files in it" in capsys.readouterr().err
    assert sorted(mine.rglob("*")) == before
    assert run(model, folder, "--keep-unsure", folder / "000.png") == 2
    assert run(model, folder, "--keep-unsure", tmp_path / "none" / "new") == 2
    assert run(model, folder, "--limit", 3) == 2
    assert "--limit needs --keep-unsure DIR" in capsys.readouterr().err
    assert run(model, folder, "--embeddings", tmp_path / "e.npy", "--keep-unsure", tmp_path / "n") == 2


def test_an_image_that_is_gone_is_counted(tmp_path: Path, folder: Path) -> None:
    unsure = UnsureImages(10, None)
    unsure.offer(record(str(folder / "000.png"), 0, 0.5))
    unsure.offer(record(str(folder / "gone.png"), 0, 0.5))
    assert unsure.write(tmp_path / "new", LABELS).endswith(f"{tmp_path / 'new'}, 1 were gone")


def test_the_monitor_writes_a_file_and_a_line(
    make_model: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess = Preprocess(size=(32, 32))
    paths = sorted(folder.glob("[0-9]*.png"))
    logits = [preprocess(each).mean((0, 1)).astype(np.float32) / 10 for each in paths]
    scores = np.array([make_prediction(row, LABELS, 1).score for row in logits])
    text = describe_rows(measure_all(paths, preprocess), score=scores).to_json()
    model = add_statistics(make_model(), text)
    out = tmp_path / "labels.csv"
    assert run(model, folder, "--output", out, "--monitor", "--min-score", 0.7) == 1
    assert "monitor: no drift: 120 images against 120 at export" in capsys.readouterr().err
    report = json.loads((tmp_path / "labels.csv.monitor.json").read_text())
    assert (report["seen"], report["raised"], report["reference"]) == (120, [], 120)
    assert report["unsure"] == pytest.approx(report["unsure_there"], abs=0.05)
    for path in paths:
        Image.fromarray(np.asarray(Image.open(path)) // np.uint8(2)).save(path)
    assert run(model, folder, "--monitor") == 1
    assert "these images differ from those measured" in capsys.readouterr().err


def test_a_model_without_statistics_is_refused(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, folder, "--monitor") == 2
    assert "it holds no field statistics" in capsys.readouterr().err
