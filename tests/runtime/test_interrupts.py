"""Ctrl-C and SIGTERM at chosen and random moments of real processes: one line, exit code, right next run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tools.expected_drift import random_checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")

# `python -m COMMAND` that gets a signal from itself when a module is looked for: the same moment anywhere.
AT_IMPORT = """
import os, runpy, sys
module, number, command = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Signalling())
sys.argv = sys.argv[3:]
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Place:
    """A folder in which commands run as a user runs them."""

    folder: Path
    root: Path

    def start(self, command: list[Any]) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, which does not ignore Ctrl-C."""
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *words: Any) -> subprocess.CompletedProcess[str]:
        """Run `python -m WORDS` to its end."""
        return ended(self.start([sys.executable, "-m", *words]))

    def interrupted(self, moment: float, command: list[Any], number: int) -> subprocess.CompletedProcess[str]:
        """Send a signal to the group `moment` seconds after its Python began to handle signals."""
        process = self.start(command)
        while process.poll() is None and not handles_signals(process.pid):
            time.sleep(0.002)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
        return ended(process)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=550)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def handles_signals(group: int) -> bool:
    """Return whether each Python process of a group has the handler for SIGTERM of `run_interruptible`."""
    caught = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdecimal() or os.getpgid(int(folder.name)) != group:
                continue
            text = (folder / "status").read_text(encoding="utf-8")
        except OSError:  # it has ended
            continue
        values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if values["Name"].strip().startswith("python"):
            caught.append(int(values["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)
    return bool(caught) and all(caught)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, weights of timm's names, images in folders of classes, and loose ones."""
    folder = tmp_path_factory.mktemp("inputs")
    random_checkpoint(folder / "model.safetensors")
    save_file(timm_weights(width=64, depth=2, classes=3), folder / "timm.safetensors")
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for digit in range(3):
            (folder / "photos" / split / str(digit)).mkdir(parents=True)
            for index in range(12):
                pixels = noise.integers(60 * digit, 60 * digit + 90, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / str(digit) / f"{index}.png")
    return folder


def timm_weights(width: int, depth: int, classes: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 17, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 8, 8), "patch_embed.proj.bias": (width,)}
    for index in range(depth):
        for name, outputs, inside in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{index}.{name}.weight"] = (outputs, inside)
            shapes[f"blocks.{index}.{name}.bias"] = (outputs,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{index}.{norm}.{each}": (width,) for each in ("weight", "bias")}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (classes, width)}
    shapes["head.bias"] = (classes,)
    return {name: noise.normal(size=shape, scale=0.1).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def place(tmp_path: Path, root: Path) -> Place:
    return Place(tmp_path, root)


def commands(inputs: Path) -> dict[str, list[Any]]:
    """Each command as its arguments, with everything that it needs in `inputs`."""
    photos = inputs / "photos"
    train = ["--model", "tiny", "--image-size", "32", "--patch-size", "8", "--epochs", "3", "--batch", "8"]
    return {
        "train": ["vit", "train", "--data", photos, *train, "--out", "run", "--resume", "auto"],
        "import": ["vit", "import", inputs / "timm.safetensors", "--heads", "2", "--out", "imported"],
        "summary": ["vit", "summary", inputs / "model.safetensors"],
        "plots": ["vit", "plots", inputs / "model.safetensors", "--out", "plots"],
        "export": [
            *("export", inputs / "model.safetensors", "--quantize", "--calibration", photos / "train"),
            *("--threads", "1", "--out", "exported"),
        ],
        "digits": ["tools.digit_images", "--out", "digits"],
    }


@pytest.mark.parametrize(
    ("command", "module", "number"),
    [
        ("train", "vit.commands.main", signal.SIGINT),
        ("train", "torch", signal.SIGINT),
        ("import", "torch._C", signal.SIGTERM),
        ("summary", "safetensors", signal.SIGTERM),
        ("plots", "matplotlib.figure", signal.SIGINT),
        ("export", "runtime.command.line", signal.SIGINT),
        ("export", "numpy", signal.SIGTERM),
        ("export", "torch", signal.SIGINT),
        ("digits", "sklearn", signal.SIGINT),
    ],
)
def test_a_signal_at_an_import_is_one_line(
    command: str, module: str, number: int, inputs: Path, place: Place
) -> None:
    words = commands(inputs)[command]
    done = ended(place.start([sys.executable, "-c", AT_IMPORT, module, int(number), *words]))
    expect_one_line(done, words[0], 128 + number)
    assert done.stdout == ""


def test_the_one_command_handles_signals_before_it_imports_the_others(place: Place) -> None:
    words = ["vit_edge", "summary", "tiny"]
    done = ended(
        place.start([sys.executable, "-c", AT_IMPORT, "export.command_line", signal.SIGINT.value, *words])
    )
    expect_one_line(done, "vit-edge", 130)


def test_a_signal_in_the_exporter_of_torch_is_one_line(inputs: Path, place: Place) -> None:
    """It catches all errors and asks for bug reports; here it imports a part of itself late."""
    module = "onnxscript.function_libs.torch_lib.ops.nn"
    words = commands(inputs)["export"]
    done = ended(place.start([sys.executable, "-c", AT_IMPORT, module, int(signal.SIGINT), *words]))
    expect_one_line(done, "export", 130)


# Lines for people that a command prints on its way.
MESSAGES = (
    "--resume auto: ",
    "recipe: ",
    "epoch ",
    "resuming ",
    "test: ",
    "note: ",
    "assumed",
    "timm weights",
)


def expect_one_line(done: subprocess.CompletedProcess[str], command: str, code: int) -> None:
    """Beside what it says on its way, an interrupted command prints one line."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(MESSAGES)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{command.rpartition('.')[2]}: "), lines
    assert "stopped" in lines[0] or "interrupted" in lines[0]


def chain(place: Place, command: list[Any], count: int, seed: int, seconds: float) -> int:
    """Interrupt a command again and again, at once and then at random moments; return how often it hit.

    Args:
        place: where it runs.
        command: its words.
        count: how many moments.
        seed: of the moments.
        seconds: the latest moment.
    """
    chance, hits = random.Random(seed), 0
    for moment in [0.0, *(chance.uniform(0, seconds) for _ in range(count - 1))]:
        number = signal.SIGTERM if chance.random() < 0.2 else signal.SIGINT
        done = place.interrupted(moment, [sys.executable, "-m", *command], number)
        if done.returncode:
            expect_one_line(done, command[0], 128 + number)
            hits += 1
        else:
            assert "Traceback" not in done.stderr
        leftovers = [path for path in place.folder.rglob(".*") if path.name != ".matplotlib"]
        assert not leftovers, leftovers
    return hits


def straight(place: Place, command: list[Any]) -> float:
    """Run a command to its end in a folder beside, and return how many seconds it took."""
    beside = Place(place.folder / "straight", place.root)
    beside.folder.mkdir()
    began = time.monotonic()
    done = beside.run(*command)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def same(place: Place, name: str) -> bool:
    """Return whether a file is what a run without interruptions wrote."""
    return (place.folder / name).read_bytes() == (place.folder / "straight" / name).read_bytes()


def check_training(place: Place) -> None:
    """The weights and their document; the state holds the seconds of each epoch, too."""
    assert same(place, "run/model.safetensors")


def check_import(place: Place) -> None:
    assert same(place, "imported/model.safetensors")


def check_export(place: Place) -> None:
    assert same(place, "exported/plan.json")
    for folder in (place.folder, place.folder / "straight"):
        names = sorted(path.name for path in (folder / "exported").iterdir())
        assert names == ["model.int8.onnx", "model.onnx", "plan.json", "report.html", "report.json"]
        assert set(json.loads((folder / "exported" / "report.json").read_text())["models"]) == {
            "float32",
            "int8",
        }


def check_labels(place: Place) -> None:
    """Every image has one line, the same as without interruptions."""
    found, expected = (
        sorted((folder / "labels.jsonl").read_text().splitlines())
        for folder in (place.folder, place.folder / "straight")
    )
    assert found == expected


CHECKS: dict[str, Callable[[Place], None]] = {
    "train": check_training,
    "import": check_import,
    "export": check_export,
    "runtime": check_labels,
}


def interrupt_and_finish(name: str, place: Place, command: list[Any], count: int, seed: int) -> int:
    seconds = straight(place, command)
    hits = chain(place, command, count, seed, seconds)
    done = place.run(*command)
    assert done.returncode == 0, done.stderr
    CHECKS[name](place)
    return hits


def test_signals_at_random_moments_of_an_import(inputs: Path, place: Place) -> None:
    """The first one comes as soon as the command handles signals."""
    assert interrupt_and_finish("import", place, commands(inputs)["import"], 2, seed=0)


def test_signals_at_random_moments_of_the_batch_command(
    digits_artifacts: Path, inputs: Path, place: Place
) -> None:
    command = batch_command(digits_artifacts, inputs, place)
    assert interrupt_and_finish("runtime", place, command, 2, seed=0)


def batch_command(artifacts: Path, inputs: Path, place: Place) -> list[Any]:
    return ["runtime", artifacts, inputs / "photos", "--output", "labels.jsonl", "--resume", "--workers", "1"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixty_signals(digits_artifacts: Path, inputs: Path, tmp_path: Path, root: Path) -> None:
    """60 random moments over training, import, export and the batch command."""
    many = tmp_path / "many"
    many.mkdir()
    for index in range(2000):
        pixels = np.full((64, 64, 3), index % 256, np.uint8)
        Image.fromarray(pixels).save(many / f"{index}.png")
    labels = ["runtime", digits_artifacts, many, "--output", "labels.jsonl", "--resume", "--workers", "1"]
    hits = {}
    for seed, name in enumerate(CHECKS):
        folder = tmp_path / name
        folder.mkdir()
        command = labels if name == "runtime" else commands(inputs)[name]
        hits[name] = interrupt_and_finish(name, Place(folder, root), command, 15, seed)
    print(f"60 signals, interrupted: {hits}")
    assert min(hits.values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_make_demo_goes_on_after_ctrl_c(tmp_path: Path, root: Path) -> None:
    """Interrupted in training and at other moments, then typed again: the model is trained to its end."""
    place = Place(tmp_path, root)
    prefix = Path(sys.executable).parents[1]
    demo = ["make", "--file", root / "Makefile", "demo", f"VENV={prefix}", "INSTALLED="]
    interrupted = 0
    for moment in (3, 8, 15, 4):
        done = place.interrupted(moment, demo, signal.SIGINT)
        if done.returncode:
            interrupted += 1
            assert "Traceback" not in done.stderr
            lines = [
                line
                for line in done.stderr.splitlines()
                if not line.startswith(("make", "runs/digits", "export: runs/digits"))
            ]
            assert len(lines) == 1, done.stderr
            assert lines[0].startswith("export: stopped")
    assert interrupted
    done = ended(place.start(demo))
    assert done.returncode == 0, done.stderr
    from vit.document import read_document

    document = read_document(tmp_path / "runs" / "digits")
    assert document.finished
    assert len(document.history) == document.recipe["recipe"]["epochs"]
    assert sum(line.startswith("{") for line in done.stdout.splitlines()) == 5
