"""The benchmarks' command lines, run as a user runs them, on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import accuracy, latency
from benchmarks.peers import BASELINE, OURS, REFERENCE, Skipped
from runtime.images.preprocess import Preprocess
from vit.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path, bench):
    """A checkpoint, six images and their classes."""
    spec = Preprocess(size=(32, 32))
    save_checkpoint(tmp_path / "run", model=bench.model, preprocess=spec, labels=tuple("abcd"))
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


def test_accuracy_prints_tables_and_nothing_else(photos, built, capsys, monkeypatch):
    built = [each for each in built if not isinstance(each, Skipped)]  # of the tools that are installed
    asked = []

    def build(bench, variations):
        asked.append(bench.max_drop)
        return [replace(built[0], note="like no other"), *built[1:], Skipped("some tool", "not installed")]

    monkeypatch.setattr(accuracy, "build", build)
    for option in (["--accuracy-aware", "0.5"], ["--accuracy-aware"]):
        assert accuracy.main(arguments(photos, "--calibrate", "2", "--runs", "0", *option)) == 0
        capsys.readouterr()
    assert accuracy.main(arguments(photos, "--calibrate", "2", "--runs", "2")) == 0
    assert asked == [0.5, 0.01, None]
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].startswith("`python -m ")
    assert "2 photos to calibrate, 4 others to measure." in lines
    assert "One photo, threads: 1." in lines
    assert f"{REFERENCE}: like no other." in lines
    assert lines[-1] == "Left out: some tool, not installed."
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines if row.startswith("|")]
    peers = [each.name for each in built]
    assert [row[0] for row in rows] == ["", "-" * len(rows[1][0]), *peers, "", "-" * len(rows[1][0]), *peers]
    drift = {row[0]: row[1:] for row in rows[2 : 2 + len(peers)]}
    assert drift[REFERENCE][1:] == ["100.0", ""]
    assert 15 < float(drift[OURS][2]) < 80
    assert rows[-len(peers) + peers.index(BASELINE)][3] == "1.00x"


@pytest.mark.parametrize("command", [latency, accuracy])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m {command.__name__}" in shown
    assert "--runs" in shown
    assert "--threads" in shown


def test_wrong_use_in_a_shell():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.latency", "--sizes", "tiny", "small", "--target-graph", "x.onnx"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "name that size alone with --sizes" in done.stderr


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


def test_calibration_must_leave_images_to_measure_on(photos, capsys):
    assert accuracy.main(arguments(photos, "--calibrate", "6")) == 2
    assert "expected 1 to 5 photos to calibrate with, found 6" in capsys.readouterr().err


def test_calibration_and_evaluation_are_apart_and_chosen_by_the_seed(photos):
    images = accuracy.labeled(photos / "photos", photos / "labels.csv", classes=4)
    spec = Preprocess(size=(32, 32))
    first, again, other = (accuracy.divide(images, spec, calibrate=3, seed=seed) for seed in (1, 1, 2))
    seen = {image.tobytes() for image in first.calibration}
    assert len(seen) == 3
    assert not seen & {image.tobytes() for image in first.evaluation}
    assert seen == {image.tobytes() for image in again.calibration}
    assert seen != {image.tobytes() for image in other.calibration}
    exact = {spec(item).tobytes(): target for item, target in zip(images.items, images.targets, strict=True)}
    assert [exact[image.tobytes()] for image in first.evaluation] == list(first.targets)


def test_latency_refuses_graphs_that_cannot_be_timed_before_it_builds_anything(
    bench, built, capsys, monkeypatch
):
    monkeypatch.setattr(latency, "build", lambda made: pytest.fail("was built"))
    ours, floats, none = (str(bench.folder / name) for name in ("ours.onnx", "plain.onnx", "none.onnx"))
    for sizes, path, complaint in (
        (["tiny", "small"], ours, "name that size alone"),
        (["tiny"], none, "expected an .onnx file, found none"),
        (["tiny"], floats, "expected one input of uint8 pixels"),
        (["tiny"], ours, "Expected: 32"),
    ):
        assert latency.main(["--sizes", *sizes, "--target-graph", path]) == 2
        captured = capsys.readouterr()
        assert complaint in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_latency_times_every_size_with_every_number_of_threads(bench, built, capsys, monkeypatch):
    asked, few = [], [each for each in built if each.name in (REFERENCE, BASELINE, OURS)]
    monkeypatch.setattr(latency, "SIZES", {"tiny": bench.model.config, "small": bench.model.config})
    monkeypatch.setattr(latency, "build", lambda made, tools: asked.append(made.model.config) or few)
    assert latency.main(["--sizes", "tiny", "small", "--threads", "1", "2", "--runs", "1"]) == 0
    out = capsys.readouterr().out
    sizes, threads = ("tiny", "small"), ("1 thread", "2 threads")
    heads = [f"**{size}, {count}**, 1 runs" for size in sizes for count in threads]
    assert [line for line in out.splitlines() if line.startswith("**")] == heads
    assert out.count(f"| {OURS} ") == 4
    assert asked == [bench.model.config] * 2
