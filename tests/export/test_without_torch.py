"""`python -m export --onnx` where there is no torch: from start to report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE, PATCH, WIDTH, CLASSES = 16, 8, 24, 3

# An environment in which the packages of training cannot be imported.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "safetensors", "sklearn", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def perceptron() -> onnx.ModelProto:
    """Patches, one GELU layer on each, their mean, and a classifier: enough for every step of an export."""
    random = np.random.default_rng(0)
    weights = {
        "patch.weight": random.normal(size=(WIDTH, 3, PATCH, PATCH)) / 14,
        "patch.bias": random.normal(size=WIDTH),
        "fc.weight": random.normal(size=(WIDTH, WIDTH)) / 5,
        "fc.bias": random.normal(size=WIDTH),
        "head.weight": random.normal(size=(WIDTH, CLASSES)),
        "head.bias": random.normal(size=CLASSES),
    }
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors += [
        numpy_helper.from_array(np.array([0, WIDTH, -1]), "rows"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "patch.weight", "patch.bias"], ["grid"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["grid", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "fc.weight"], ["product"]),
        helper.make_node("Add", ["product", "fc.bias"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden", "one"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "head.weight", "head.bias"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "perceptron", [images], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


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
    assert "3 of 3 linears" in done.stdout
    assert (folder / "out" / "report.html").stat().st_size > 5000


def test_an_onnx_model_needs_no_torch(folder: Path, root: Path) -> None:
    expect_files(exported([sys.executable, "-c", BLOCKED], folder, root), folder)


def test_a_checkpoint_says_what_to_install(folder: Path, root: Path) -> None:
    done = run([sys.executable, "-c", BLOCKED, folder / "model.safetensors"], root)
    assert done.returncode == 1
    assert 'pip install "vit-edge[export]"' in done.stderr
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
    assert 'pip install "vit-edge[export]"' in done.stderr
