"""The benchmarks' command lines, run as a user runs them, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import accuracy, latency
from runtime.preprocess import Preprocess
from vit.checkpoint import save_checkpoint
from vit.config import ViTConfig
from vit.model import ViT

ROOT = Path(__file__).parents[2]
CONFIG = ViTConfig(image_size=(32, 32), patch_size=8, width=64, depth=1, heads=2, mlp_width=128, classes=4)


@pytest.fixture
def photos(tmp_path):
    """A checkpoint, six pictures and their classes."""
    torch.manual_seed(0)
    labels = tuple("abcd")
    save_checkpoint(tmp_path / "run", model=ViT(CONFIG), preprocess=Preprocess(size=(32, 32)), labels=labels)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    lines = ["file,class_index"]
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        lines.append(f"{i}.png,{i % 4}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def arguments(folder, *more):
    paths = {"--checkpoint": "run", "--photos": "photos", "--labels": "labels.csv"}
    return [text for name, path in paths.items() for text in (name, str(folder / path))] + list(more)


def test_accuracy_prints_a_table_and_nothing_else(photos):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", *arguments(photos, "--calibrate", "2", "--runs", "2")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("`python -m benchmarks.accuracy --checkpoint ")
    assert "2 photos to calibrate, 4 others to measure." in lines
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in lines if row.startswith("|")}
    assert rows["torch eager float32"] != rows["ours INT8, ORT"]
    assert 20 < float(next(r for r in lines if r.startswith("| ours INT8, ORT")).split("|")[4]) < 90
    assert all(
        line.startswith(("|", "`", "**")) or line == "" or line.endswith((".", ".x")) for line in lines
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0.png,4", "expected a class, 0 to 3, found '4'"),
        ("9.png,1", "no such photo"),
        ("0.png,-1", "found '-1'"),
    ],
)
def test_a_wrong_line_of_the_labels_is_named(photos, capsys, line, complaint):
    (photos / "labels.csv").write_text(f"file,class_index\n1.png,0\n{line}\n")
    assert accuracy.main(arguments(photos)) == 2
    error = capsys.readouterr().err
    assert "line 3" in error
    assert complaint in error


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda f: (f / "labels.csv").write_text("name,class\na,1\n"),
            "expected the columns file and class_index",
        ),
        (lambda f: (f / "labels.csv").unlink(), "expected a CSV file"),
        (lambda f: (f / "run" / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(photos, capsys, change, complaint):
    change(photos)
    assert accuracy.main(arguments(photos, "--calibrate", "2")) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_calibration_must_leave_pictures_to_measure_on(photos, capsys):
    assert accuracy.main(arguments(photos, "--calibrate", "6")) == 2
    assert "expected 1 to 5 photos to calibrate with, found 6" in capsys.readouterr().err


def test_calibration_and_evaluation_are_apart_and_chosen_by_the_seed(photos):
    pictures = accuracy.labelled(photos / "photos", photos / "labels.csv", classes=4)
    spec = Preprocess(size=(32, 32))
    first, again, other = (accuracy.divide(pictures, spec, calibrate=3, seed=seed) for seed in (1, 1, 2))
    seen = {picture.tobytes() for picture in first.calibration}
    assert len(seen) == 3
    assert not seen & {picture.tobytes() for picture in first.evaluation}
    assert seen == {picture.tobytes() for picture in again.calibration}
    assert seen != {picture.tobytes() for picture in other.calibration}
    exact = {
        spec(item).tobytes(): target for item, target in zip(pictures.items, pictures.targets, strict=True)
    }
    assert [exact[picture.tobytes()] for picture in first.evaluation] == list(first.targets)


def test_latency_refuses_a_graph_for_several_sizes(capsys, tmp_path):
    assert latency.main(["--sizes", "tiny", "small", "--target-graph", str(tmp_path / "x.onnx")]) == 2
    assert "name that size alone" in capsys.readouterr().err
    assert latency.main(["--sizes", "tiny", "--target-graph", str(tmp_path / "x.onnx")]) == 2
    assert "expected an .onnx file" in capsys.readouterr().err


def test_latency_times_every_size_with_every_number_of_threads(capsys, monkeypatch):
    monkeypatch.setattr(latency, "SIZES", {"tiny": CONFIG, "small": CONFIG})
    assert latency.main(["--sizes", "tiny", "small", "--threads", "1", "2", "--runs", "1"]) == 0
    out = capsys.readouterr().out
    heads = [
        f"**{size}, {threads}**, 1 runs"
        for size in ("tiny", "small")
        for threads in ("1 thread", "2 threads")
    ]
    assert [line for line in out.splitlines() if line.startswith("**")] == heads
    assert out.count("| ours INT8, ORT ") == 4
