"""`python -m export --onnx` from start to report: without torch, and with weights too large for one file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from export.__main__ import main
from export.sources.onnx_file import read_onnx
from export.write_artifact import serialize_model
from runtime import Classifier
from runtime.session import open_session
from tests.support.small_perceptron import SIDE, perceptron
from tools.expected_drift import random_checkpoint

# An environment in which the packages of training cannot be imported.
BLOCKED = """
import importlib.metadata, sys
blocked, found = {"torch", "safetensors", "sklearn", "onnxscript"}, importlib.metadata.version
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
def version(name):
    if name in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
sys.meta_path.insert(0, Blocked())
importlib.metadata.version = version
from export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as optimum writes it, and twelve images beside it."""
    folder = tmp_path / "perceptron"
    (folder / "photos").mkdir(parents=True)
    onnx.save(perceptron(), folder / "model.onnx")
    processor = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    (folder / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}', encoding="utf-8")
    random = np.random.default_rng(0)
    for index in range(12):
        image = Image.fromarray(random.integers(0, 256, (24, 20, 3), np.uint8))
        image.save(folder / "photos" / f"{index}.png")
    return folder


def exported(command: list[str | Path], folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    options = ["--onnx", folder, "--quantize", "--calibration", folder / "photos", "--threads", "1"]
    return run([*command, *options, "--out", folder / "out"], root)


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    # A locale that knows ASCII alone: the reports hold more than that.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8",
        errors="replace", timeout=580,
    )  # fmt: skip


def expect_files(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["parity"]["reference"] == "the original ONNX"
    assert set(report["models"]) == {"float32", "int8"}
    assert "torch" not in report["environment"]["packages"]
    assert "int8: 3 linear layers, 2 in INT8 (all in integer kernels), 1 stays float32: " in done.stdout
    assert (folder / "out" / "report.html").stat().st_size > 5000


def test_an_onnx_model_needs_no_torch(folder: Path, root: Path) -> None:
    expect_files(exported([sys.executable, "-c", BLOCKED], folder, root), folder)


def test_weights_too_large_for_one_file_lie_beside_it(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """With limits of a few kilobytes in the place of gigabytes: the float file has two parts, INT8 one."""
    large = [value for value in perceptron().graph.initializer]
    weights = sum(numpy_helper.to_array(each).nbytes for each in large)
    monkeypatch.setattr("calibration.graph.memory.LARGE", 0)
    monkeypatch.setattr("export.write_artifact.ONE_FILE", weights // 2)
    out = tmp_path / "out"
    command = ["--onnx", folder, "--quantize", "--calibration", folder / "photos", "--out", out]
    assert main([*map(str, command), "--threads", "1"]) == 0
    int8, float32, beside = sorted(path for path in out.glob("*.onnx*"))
    assert (int8.name, float32.name) == ("model.int8.onnx", "model.onnx")
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    assert beside.name == f"model.onnx.{digest[:16]}.data"
    assert beside.stat().st_size > weights // 2
    images = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    found = open_session(out / "model.onnx", device="cpu").run(None, {"pixels": images})[0]
    expected = read_onnx(folder).reference(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["models"]["float32"]["bytes"] == sum(p.stat().st_size for p in out.glob("model.onnx*"))
    whole = Classifier(out / "model.onnx", sha256=report["models"]["float32"]["sha256"])
    assert whole(images[0]).label == "abc"[int(expected[0].argmax())]
    assert Classifier(out / "model.int8.onnx")(images[0]).label in "abc"


@pytest.mark.parametrize("opset", [17, 20])
def test_large_weights_stay_aside_while_the_opset_is_converted(opset: int, folder: Path, monkeypatch) -> None:
    model = perceptron()
    if opset < 20:
        model.graph.node[5].op_type = "Tanh"
        model.graph.node[6].input[:] = ["hidden"]
        model.graph.node[6].attribute.append(helper.make_attribute("axes", [1]))
        model.opset_import[0].version = opset
    onnx.save(model, folder / "model.onnx")
    monkeypatch.setattr("export.sources.onnx_file.BIG_TENSOR", 100)
    source = read_onnx(folder)
    images = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    session = open_session(serialize_model(source.exported.model), device="cpu")
    np.testing.assert_allclose(session.run(None, {"pixels": images})[0], source.reference(images), atol=1e-5)


def test_a_checkpoint_says_what_to_install(folder: Path, root: Path) -> None:
    done = run([sys.executable, "-c", BLOCKED, folder / "model.safetensors"], root)
    assert done.returncode == 1
    assert "python tools/install.py export" in done.stderr
    assert "--onnx" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_extra_onnx_is_enough_in_a_new_environment(new_python: Path, folder: Path, root: Path) -> None:
    pip = [new_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = run([*pip, "-c", root / "constraints.txt", f"{root}[onnx]"], folder)
    assert installed.returncode == 0, installed.stderr
    assert run([new_python, "-c", "import torch"], folder).returncode != 0
    expect_files(exported([new_python, "-m", "export"], folder, folder), folder)
    done = run([new_python, "-m", "export", folder / "model.safetensors"], folder)
    assert "python tools/install.py export" in done.stderr


def lowest(extras: str, project: dict[str, Any]) -> list[str]:
    """The requirements of extras, `a,b`, and what these build on, at the lower bound of each."""
    found = list(project["dependencies"])
    every = project["optional-dependencies"]
    for requirement in [each for extra in extras.split(",") for each in every[extra]]:
        inner = re.fullmatch(r"vit-edge\[(.*)\]", requirement)
        found += lowest(inner[1], project) if inner else [requirement]
    return [requirement.replace(">=", "==") for requirement in dict.fromkeys(found)]


@pytest.mark.slow
def test_the_lower_bounds_of_the_extra_onnx_work(new_python: Path, folder: Path, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip = [new_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = run([*pip, *lowest("onnx", project)], folder)
    assert installed.returncode == 0, installed.stderr
    expect_files(exported([new_python, "-m", "export"], folder, root), folder)


@pytest.mark.slow
def test_the_lower_bounds_of_the_extra_export_work(new_python: Path, folder: Path, root: Path) -> None:
    """With the one version of torch that installs without gigabytes of CUDA packages."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = re.findall(
        r"^torch==.*$", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    bounds = [each for each in lowest("export", project) if not each.startswith("torch==")]
    pip = [new_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for some in ([torch], bounds):
        installed = run([*pip, *some], folder)
        assert installed.returncode == 0, installed.stderr
    checkpoint = random_checkpoint(folder / "model.safetensors")
    options = ["--quantize", "--calibration", "digits", "--samples", "16", "--threads", "1"]
    done = run([new_python, "-m", "export", checkpoint, *options, "--out", folder / "out"], root)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["parity"]["reference"] == "torch"
    assert set(report["models"]) == {"float32", "int8"}


def test_logits_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path, capsys) -> None:
    """A hidden layer beyond 65,504 is infinite in float16. No limit sees NaN: comparisons are false."""
    model = perceptron()
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(6e4), tensor.name)
            )
    onnx.save(model, folder / "model.onnx")
    out = tmp_path / "out"
    command = [
        "--onnx",
        folder,
        "--fp16",
        "--min-sqnr",
        "5",
        "--calibration",
        folder / "photos",
        "--out",
        out,
    ]
    assert main([*map(str, command), "--threads", "1"]) == 1
    message = capsys.readouterr().err
    assert "float16: expected numbers as logits, found NaN or infinity on " in message
    assert "leave --fp16 out" in message
    assert not out.exists()


@pytest.fixture
def export_here(folder: Path, tmp_path: Path, capsys) -> Callable[..., tuple[int, str]]:
    """Run the export of the folder's model into `out`; the exit code and standard error."""

    def run_here(*arguments: str | Path) -> tuple[int, str]:
        command = ["--onnx", folder, *arguments, "--out", tmp_path / "out", "--threads", "1"]
        return main(list(map(str, command))), capsys.readouterr().err

    return run_here


def test_one_image_to_measure_with_has_no_interval(folder: Path, export_here) -> None:
    for path in sorted((folder / "photos").iterdir())[2:]:
        path.unlink()
    code, _ = export_here("--quantize", "--calibration", folder / "photos")
    assert code == 0


def test_nothing_is_calibrated_where_a_plan_is_given(folder: Path, tmp_path: Path, export_here) -> None:
    """Then images to measure with are enough."""
    photos = folder / "photos"
    code, message = export_here("--quantize", "--evaluate", photos)
    assert (code, "none to calibrate with; add --calibration" in message) == (2, True)
    assert export_here("--evaluate", photos)[0] == 0
    assert export_here("--quantize", "--calibration", photos)[0] == 0
    (tmp_path / "out" / "plan.json").rename(tmp_path / "plan.json")
    code, message = export_here("--plan", tmp_path / "plan.json", "--evaluate", photos)
    assert code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["images"] == 12
    assert report["calibration"]["plan"] == "plan.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--plan", "plan.json"], "leave --target out"), ([], "--target is for an INT8 file: add --quantize")],
)
def test_a_target_that_would_change_nothing_is_refused(options, message, folder: Path, export_here) -> None:
    found = export_here("--target", "full-range", "--calibration", folder / "photos", *options)
    assert (found[0], message in found[1]) == (2, True)


def test_files_of_an_earlier_export_are_named(folder: Path, tmp_path: Path, export_here) -> None:
    """The runtime would go on to take that INT8 file."""
    photos = folder / "photos"
    code, message = export_here("--quantize", "--calibration", photos)
    assert (code, "earlier export" in message) == (0, False)
    code, message = export_here("--calibration", photos)
    assert code == 0
    for name in ("model.int8.onnx", "plan.json"):
        assert f"{tmp_path / 'out' / name}: of an earlier export and not replaced" in message
