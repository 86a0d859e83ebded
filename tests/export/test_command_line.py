"""`python -m export` as a user runs it: what it prints, what it leaves, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime import Classifier, Preprocess, read_metadata
from tools.expected_drift import random_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]
FILES = ["model.int8.onnx", "model.onnx", "plan.json", "report.html", "report.json"]


@pytest.fixture
def run(start: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Run:
    """The command, or Python code with its arguments, in an empty folder; standard error is no terminal."""

    def command(*arguments: Any, code: str | None = None) -> subprocess.CompletedProcess[str]:
        return start(*(("-m", "export") if code is None else ("-c", code)), *arguments, cwd=tmp_path)

    return command


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits that learned nothing; nothing here asks how good it is."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


def write_photos(folder: Path) -> Path:
    """Write images in folders named as four of the model's classes."""
    for digit in range(4):
        place = folder / "photos" / str(digit)
        place.mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (40, 40), (60 * digit, 50 * index, 99)).save(place / f"{index}.jpg")
    return folder / "photos"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path)


@pytest.fixture(scope="session")
def exported(
    start: Callable[..., subprocess.CompletedProcess[str]],
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder that an export of these images leaves; tests begin with a copy of it."""
    folder = tmp_path_factory.mktemp("exported")
    images = write_photos(folder)
    done = start(
        "-m", "export", checkpoint, "--quantize", "--calibration", images, "--out", "out", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_embedded_example(run: Run, digits_checkpoint: Path, tmp_path: Path) -> None:
    """Without a checkpoint, with one trained already: what make demo does the second time."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(digits_checkpoint.parent, tmp_path / "runs" / "digits")
    done = run("--quantize")
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "artifacts" / "digits"
    assert sorted(path.name for path in out.iterdir()) == FILES
    header, float32, int8 = (line.split() for line in done.stdout.splitlines()[:3])
    assert header == ["top-1", "agreement", "SQNR", "latency", "size", "file"]
    assert float32[0] == "float32"
    assert int8[0] == "int8"
    assert float(float32[1]) >= 97
    assert float(float32[1]) - float(int8[1]) <= 0.6
    assert "360 images of digits test" in done.stdout
    # the last block and the head see one row per image
    assert "\nint8: 26 linear layers, 21 in INT8 (all in integer kernels), 5 stay float32: " in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert set(report["models"]) == {"float32", "int8"}
    assert report["models"]["int8"]["bytes"] == (out / "model.int8.onnx").stat().st_size
    assert (out / "model.int8.onnx").stat().st_size < (out / "model.onnx").stat().st_size / 2
    for variant, name in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        metadata = read_metadata(out / name)
        assert metadata.variant == variant
        assert metadata.labels == tuple("0123456789")
        assert metadata.preprocess == Preprocess(size=(32, 32), resize="stretch", interpolation="bilinear")
        assert metadata.source["sha256"] == report["source"]["sha256"]
    assert read_metadata(out / "model.int8.onnx").measured["drift"] == report["models"]["int8"]["drift"]
    assert str(tmp_path) not in (out / "report.json").read_text()


def test_a_plan_can_be_edited_and_passed_back(
    run: Run, exported: Path, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    written = (tmp_path / "out" / "plan.json").read_text()
    plan = json.loads(written)
    plan["linears"]["patch_embedding"] = {"precision": "float32"}
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    again = run(checkpoint, "--plan", "out/plan.json", "--calibration", photos, "--out", "same")
    edited = run(checkpoint, "--plan", "edited.json", "--calibration", photos, "--out", "edited")
    assert (again.returncode, edited.returncode) == (0, 0), edited.stderr
    assert (tmp_path / "same" / "plan.json").read_text() == written
    assert "patch_embedding" in re.split("stays? float32: ", edited.stdout)[1]
    linears = sum(each["precision"] == "int8" for each in json.loads(written)["linears"].values())
    for out, integer in (("same", linears), ("edited", linears - 1)):
        report = json.loads((tmp_path / out / "report.json").read_text())
        assert report["models"]["int8"]["integer_kernels"].startswith(f"{integer} of {integer} linears")
        file = "plan.json" if out == "same" else "edited.json"
        assert report["calibration"] == {"plan": file, "target": plan["target"]}  # nothing was calibrated
    plan["linears"]["blocks.9.head"] = {"precision": "float32"}
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    wrong = run(checkpoint, "--plan", "edited.json", "--calibration", photos, "--out", "wrong")
    assert wrong.returncode == 2
    assert "the plan names the linear layer 'blocks.9.head'" in wrong.stderr
    assert not (tmp_path / "wrong").exists()


def test_a_budget_is_searched_for_and_told(run: Run, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    done = run(checkpoint, "--quantize", "--calibration", photos, "--min-agreement", 1, "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        r"^search: on \d+ images of its own, limits met with every planned layer in int8$", done.stdout, re.M
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["search"]["returned_to_float"] == []
    used = (report["calibration"]["images"], report["search"]["images"], report["evaluation"]["images"])
    assert min(used) > 0
    assert sum(used) == len(list(photos.rglob("*.jpg")))


def test_a_budget_that_cannot_be_met_leaves_the_old_files(
    run: Run, exported: Path, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    common = (checkpoint, "--quantize", "--calibration", photos, "--out", "out")
    shutil.copytree(exported, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    failed = run(*common, "--min-sqnr", 199)
    assert failed.returncode == 1
    assert re.fullmatch(
        r"export: int8 drifts beyond the limit: SQNR is .* \(minimum: 199 dB\) on \d+ images of the search, "
        r"even with .* in float32; furthest from float32: .*No model file was written; .*\n",
        failed.stderr,
    )
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert b"vit-edge plan" in after.pop("plan-to-train.json")
    assert after == before


def test_float_alone_in_a_log_that_wants_every_line(
    run: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_EDGE_PROGRESS", "0.000001")
    done = run(checkpoint, "--calibration", photos, "--out", "out")
    assert done.returncode == 0
    steps = "writing the float graph of|comparing |measuring: \\d+ of \\d+ images|measuring latency|judging"
    assert re.fullmatch(rf"(export: ({steps}).*\n)+", done.stderr)
    assert "measuring: " in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "report.html",
        "report.json",
    ]
    assert Classifier(tmp_path / "out" / "model.onnx")(photos / "0" / "0.jpg").label in "0123456789"


def test_loose_images_measure_without_top1(run: Run, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    for index, path in enumerate(sorted(photos.rglob("*.jpg"))):
        path.rename(loose / f"{index}.jpg")
    done = run(checkpoint, "--quantize", "--calibration", loose, "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2].split()[:2] == ["int8", "-"]
    drift = json.loads((tmp_path / "out" / "report.json").read_text())["models"]["int8"]["drift"]
    assert drift["top1"] is None
    assert drift["images"] == 10


def break_nothing(photos: Path, checkpoint: Path) -> None:
    """The inputs as they are."""


def text_file(photos: Path, checkpoint: Path) -> None:
    (photos / "2" / "0.jpg").write_text("this is no image")


def truncated_jpeg(photos: Path, checkpoint: Path) -> None:
    path = photos / "2" / "0.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_a_checkpoint(photos: Path, checkpoint: Path) -> None:
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: len(data) // 2])


def empty_class(photos: Path, checkpoint: Path) -> None:
    (photos / "5").mkdir()


def empty_folder(photos: Path, checkpoint: Path) -> None:
    shutil.rmtree(photos)
    photos.mkdir()


def other_classes(photos: Path, checkpoint: Path) -> None:
    (photos / "3").rename(photos / "tulip")


@pytest.mark.parametrize(
    ("breakage", "arguments", "code", "message"),
    [
        (
            break_nothing,
            ["nowhere", "--calibration", "photos"],
            2,
            "nowhere: no checkpoint here; .*python -m vit",
        ),
        (break_nothing, ["c.safetensors", "--calibration", "nowhere"], 2, "nowhere: no such file or folder"),
        (break_nothing, ["c.safetensors"], 2, "found none given; add --calibration IMAGES"),
        (
            break_nothing,
            ["photos/0/0.jpg", "--calibration", "photos"],
            2,
            "0.jpg: expected a checkpoint, found a JPEG image",
        ),
        (
            half_a_checkpoint,
            ["c.safetensors", "--calibration", "photos"],
            2,
            "c.safetensors: not a complete .* again",
        ),
        (empty_folder, ["c.safetensors", "--calibration", "photos"], 2, "photos: no images here; expected"),
        (
            empty_class,
            ["c.safetensors", "--calibration", "photos"],
            2,
            "photos/5: a class folder without images",
        ),
        (
            other_classes,
            ["c.safetensors", "--calibration", "photos"],
            2,
            r"'tulip' \(4 classes\) is not one of .* 10",
        ),
        (
            text_file,
            ["c.safetensors", "--calibration", "photos"],
            2,
            "photos/2/0.jpg: .*; repair the image or",
        ),
        (
            truncated_jpeg,
            ["c.safetensors", "--calibration", "photos"],
            2,
            "photos/2/0.jpg: .*; repair the image or",
        ),
        (
            break_nothing,
            ["c.safetensors", "--calibration", "photos", "--keep-float", "blocks.9.mlp.fc2"],
            2,
            "no layer is called blocks.9.mlp.fc2; the model has: patch_embedding",
        ),
        (
            break_nothing,
            ["c.safetensors", "--calibration", "photos/1", "--max-drift", "1"],
            2,
            "--max-drift needs known classes.*use --min-agreement",
        ),
        (
            break_nothing,
            ["c.safetensors", "--calibration", "photos", "--min-sqnr", "199"],
            1,
            "int8 drifts beyond the limit: .*SQNR .*; furthest from float32: .* No model file was written",
        ),
        (
            break_nothing,
            ["c.safetensors", "--calibration", "photos", "--out", "c.safetensors"],
            2,
            "c.safetensors: expected a folder to write to, found a file",
        ),
    ],
)
def test_bad_input(breakage, arguments, code, message, run: Run, checkpoint, photos, tmp_path: Path) -> None:
    """One line that says what and what to do, the right exit code, no traceback, nothing half-written."""
    shutil.copy(checkpoint, tmp_path / "c.safetensors")
    breakage(photos, tmp_path / "c.safetensors")
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, *([] if "--out" in arguments else ["--out", "out"]), "--quantize")
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("export: ")
    assert re.search(message, line), line
    assert done.returncode == code
    # A limit that is missed leaves its plan, to train with.
    plans = [path for path in tmp_path.rglob("plan-to-train.json") if code == 1]
    new = {path for plan in plans for path in (plan, *plan.parents)} - set(before)
    assert sorted(set(tmp_path.rglob("*")) - new) == before


@pytest.mark.parametrize(
    "arguments", [["--samples", "0"], ["--samples", "many"], ["--target", "z80"], ["--what"]]
)
def test_wrong_arguments(arguments: list[str], run: Run) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("export: error:")


# At a chosen moment, the process gets a real signal from itself: the moment is the same on any machine.
SIGNALLED = """
import os, signal, sys
import export.write_artifact, export.report.section
from export.__main__ import main
from runtime.interrupts import run_interruptible

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
module, name, signal_name, calls = sys.argv[1:5]
target = {"files": export.write_artifact.os, "report": export.report.section.Results}[module]
original, count = getattr(target, name), 0

def signalled(*arguments):
    global count
    count += 1
    if count == int(calls):
        os.kill(os.getpid(), getattr(signal, signal_name))
    return original(*arguments)

setattr(target, name, signalled)
sys.exit(run_interruptible("export", lambda: main(sys.argv[5:])))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT and SIGKILL to send")
@pytest.mark.parametrize(
    ("moment", "code"),
    [
        # The models are written aside, the report is not.
        (("report", "to_html", "SIGINT", 1), 130),
        # All is written aside, nothing is moved.
        (("files", "fsync", "SIGINT", 1), 130),
        (("report", "to_html", "SIGTERM", 1), 143),
        (("report", "to_html", "SIGKILL", 1), -signal.SIGKILL),
        # Two of the five files are moved: each is synced, then its folder.
        (("files", "fsync", "SIGKILL", 5), -signal.SIGKILL),
    ],
)
def test_an_interruption_leaves_whole_files(
    moment, code, run: Run, exported: Path, checkpoint, photos, tmp_path: Path
) -> None:
    out = shutil.copytree(exported, tmp_path / "out")
    options = [checkpoint, "--calibration", photos, "--quantize", "--out", "out"]
    old = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    done = run(*moment, *options, "--samples", "3", code=SIGNALLED)
    assert done.returncode == code
    if code > 0:
        assert done.stderr == "export: stopped; the files of the last export are as they were\n"
        assert sorted(path.name for path in out.iterdir()) == FILES
    # What a killed export has left beside them goes with the next one.
    found = {path.name: (path.stat().st_ino, path.read_bytes()) for path in map(out.joinpath, FILES)}
    assert not [path for path in out.iterdir() if path.name[0] != "." and path.name not in FILES]
    # A file that was moved in is another one, also where its bytes are the same.
    moved = [name for name in FILES if found[name][0] != old[name][0]]
    assert moved == (FILES[:2] if moment == ("files", "fsync", "SIGKILL", 5) else [])
    changed = {name for name in FILES if found[name][1] != old[name][1]}
    assert changed <= set(moved)
    assert bool(changed) == bool(moved)
    for name in ("model.onnx", "model.int8.onnx"):
        assert Classifier(out / name)(photos / "0" / "0.jpg").label  # whole, whichever of the two it is
