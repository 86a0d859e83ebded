"""Processes that were started without some standard streams: pythonw, services, `>&-` in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime import Metadata, Preprocess

pytestmark = pytest.mark.skipif(os.name == "nt", reason="closes descriptors as a shell of Unix does")
STREAMS = [(2,), (0, 1, 2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two classes and three images."""
    folder = tmp_path_factory.mktemp("streams")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    text = Metadata(variant="float32", preprocess=Preprocess(size=(8, 8)), labels=("a", "b")).to_json()
    helper.set_model_props(model, {"vit_edge": text})
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9), (200 * (number == 1), 90, 0)).save(folder / "images" / f"{number}.png")
    return folder


def run(
    root: Path, place: Path, closed: tuple[int, ...], *arguments: object
) -> subprocess.CompletedProcess[str]:
    shut = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shut}', "sh", sys.executable, "-m", *map(str, arguments)],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("closed", STREAMS)
def test_the_work_is_done_and_nothing_but_results_is_in_the_files(
    closed: tuple[int, ...], place: Path, root: Path, tmp_path: Path
) -> None:
    """The first files that are opened would get the numbers of the streams, and what is printed there."""
    out = tmp_path / "x.jsonl"
    command = ["runtime", "m.onnx", "images", "--output", out, "--sort-into", tmp_path / "sorted"]
    done = run(root, place, closed, *command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [json.loads(line)["error"] for line in out.read_text().splitlines()] == [None] * 3
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 3


def test_results_without_messages_where_standard_error_is_closed(place: Path, root: Path) -> None:
    done = run(root, place, (2,), "runtime", "m.onnx", "images")
    assert [json.loads(line)["error"] for line in done.stdout.splitlines()] == [None] * 3


def test_a_stream_that_the_work_needs_is_named(place: Path, root: Path) -> None:
    done = run(root, place, (1,), "runtime", "m.onnx", "images")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output is closed" in done.stderr
    assert "--output FILE" in done.stderr
    done = run(root, place, (0,), "runtime", "m.onnx", "-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard input is closed" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("runtime m.onnx nowhere", 2),
        ("vit summary tiny", 0),
        ("vit train --data nowhere --out run", 2),
        ("export nowhere.safetensors", 2),
    ],
)
def test_every_command_line_ends_with_its_code_and_no_traceback(
    command: str, code: int, place: Path, root: Path
) -> None:
    done = run(root, place, (0, 1, 2), *command.split())
    assert done.returncode == code
    done = run(root, place, (1,), *command.split())
    assert done.returncode == code
    assert "Traceback" not in done.stderr
