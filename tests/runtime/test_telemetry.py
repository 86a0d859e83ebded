"""Nothing that this project starts phones home: no file in a new home folder, no name looked up."""

from __future__ import annotations

import importlib.util
import json
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from runtime.onnx_runtime import onnxruntime
from tests.support.small_perceptron import SIDE, perceptron
from tools.expected_drift import random_checkpoint

Run = Callable[..., list[str]]
PREDICT = """
import sys, time
import runtime
print(runtime.Classifier(sys.argv[1])(sys.argv[2]).label)
time.sleep(float(sys.argv[3]))
"""
SECONDS_TO_LOOK_UP = 15  # ONNX Runtime 1.32 looks up the first name 9 s after its import


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 40), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def export(tmp_path: Path) -> tuple[Any, ...]:
    """Arguments of an export that needs no PyTorch, into the folder "out"."""
    folder = tmp_path / "perceptron"
    (folder / "photos").mkdir(parents=True)
    onnx.save(perceptron(), folder / "model.onnx")
    processor = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    (folder / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}', encoding="utf-8")
    random = np.random.default_rng(0)
    for index in range(8):
        image = Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8))
        image.save(folder / "photos" / f"{index}.png")
    options = ("--quantize", "--calibration", folder / "photos", "--out", tmp_path / "out")
    return ("-m", "export", "--onnx", folder, *options)


def has_telemetry() -> bool:
    """Return whether this build of ONNX Runtime reads the variable."""
    for path in Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            return library.find(b"ORT_DISABLE_TELEMETRY") >= 0
    return False


def test_an_export_and_a_prediction_leave_nothing(
    in_fresh_home: Run, tmp_path: Path, image: Path, export: tuple[Any, ...]
) -> None:
    assert in_fresh_home(sys.executable, *export) == []
    predict = (sys.executable, "-c", PREDICT, tmp_path / "out", image, 0)
    assert in_fresh_home(*predict) == []
    assert in_fresh_home(*predict, ORT_DISABLE_TELEMETRY="") == []
    if has_telemetry():  # what a user has set stays, and the traces would be seen
        assert any("Microsoft" in trace for trace in in_fresh_home(*predict, ORT_DISABLE_TELEMETRY="0"))


@pytest.mark.slow
def test_nothing_is_looked_up_later(in_fresh_home: Run, tmp_path: Path, image: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    checkpoint = random_checkpoint(tmp_path / "model.safetensors")
    export = ("-m", "export", checkpoint, "--quantize", "--calibration", "digits", "--samples", "8")
    assert in_fresh_home(sys.executable, *export, "--out", tmp_path / "out") == []
    predict = (sys.executable, "-c", PREDICT, tmp_path / "out", image, SECONDS_TO_LOOK_UP)
    assert in_fresh_home(*predict) == []


@pytest.mark.parametrize("package", ["runtime", "calibration.observe", "tests.support.small_graphs"])
def test_importing_this_project_first_is_enough(in_fresh_home: Run, package: str) -> None:
    assert in_fresh_home(sys.executable, "-c", f"import {package}, onnxruntime") == []


AFTER = """
import logging, os, onnxruntime
onnxruntime.disable_telemetry_events = lambda: print("called")
logging.basicConfig(format="%(name)s: %(message)s")
import runtime.session, runtime.session, calibration.observe
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(
    ("variable", "printed", "said"),
    [("", "called\n1\n", 1), ("0", "0\n", 0), ("1", "1\n", 0)],
    ids=["not set", "on", "off"],
)
def test_where_the_app_has_imported_it_before(
    variable: str, printed: str, said: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", variable)
    monkeypatch.setenv("CI", "1")  # nothing is sent from this test either
    done = subprocess.run([sys.executable, "-c", AFTER], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == printed
    lines = done.stderr.splitlines()
    assert len(lines) == said
    assert all(line.startswith("runtime: onnxruntime was imported before runtime") for line in lines)


def test_openvino_is_quiet_in_benchmarks(in_fresh_home: Run) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip('needs OpenVINO: pip install ".[bench]"')
    for package in ("benchmarks.engines", "tools.devices.engine_openvino"):
        assert in_fresh_home(sys.executable, "-c", f"import {package}, openvino; openvino.Core()") == []
    if importlib.util.find_spec("nncf") is not None:
        assert in_fresh_home(sys.executable, "-c", "import benchmarks.peers, nncf") == []


def node(root: Path) -> str:
    found = shutil.which("node")
    if found is None or not (root / "javascript" / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs node and onnxruntime-node in javascript/node_modules: make borrow")
    return found


SHARED = """
import { readFile } from "node:fs/promises";
import * as runtime from "onnxruntime-node";
import { Classifier } from "./index.mjs";
await Classifier.open(new Uint8Array(await readFile(process.argv[1])), { runtime });
"""


def test_node_leaves_nothing(
    in_fresh_home: Run, tmp_path: Path, image: Path, root: Path, export: tuple[Any, ...]
) -> None:
    program, model = node(root), tmp_path / "out" / "model.onnx"
    subprocess.run([sys.executable, *map(str, export)], cwd=root, check=True, capture_output=True)
    classify = (program, root / "javascript" / "classify.mjs", model, image)
    assert in_fresh_home(*classify) == []
    assert in_fresh_home(*classify, ORT_DISABLE_TELEMETRY="") == []
    assert any("Microsoft" in trace for trace in in_fresh_home(*classify, ORT_DISABLE_TELEMETRY="0"))
    shared = (program, "--input-type=module", "--eval", SHARED, model)
    assert in_fresh_home(*shared, folder=root / "javascript") == []
    pixels = tmp_path / "pixels.raw"
    pixels.write_bytes(bytes(SIDE * SIDE * 3))
    engine = (root / "tools" / "devices" / "engine.mjs", "onnxruntime-node", model, pixels, SIDE, SIDE, 0)
    assert in_fresh_home(program, *engine, folder=root / "javascript") == []


WORKER = """
import { Worker } from "node:worker_threads";
FIRST;
new Worker('import("./javascript/MODULE.mjs")', { eval: true });
"""


@pytest.mark.parametrize("module", ["node", "index"])
@pytest.mark.parametrize(
    ("first", "variable", "warned"),
    [
        ("", "", True),
        ('await import("./javascript/node.mjs")', "", False),
        ("", "0", False),
        ("", "1", False),
    ],
    ids=["in the worker alone", "in the main thread first", "on", "off"],
)
def test_a_worker_of_node_says_what_it_cannot_turn_off(
    first: str, variable: str, warned: bool, module: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", variable)
    worker = WORKER.replace("FIRST", first).replace("MODULE", module)
    command = [node(root), "--input-type=module", "--eval", worker]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert ("set ORT_DISABLE_TELEMETRY=1 before Node starts" in done.stderr) is warned, done.stderr
