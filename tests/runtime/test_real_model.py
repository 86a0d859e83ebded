"""A model that was trained, exported and quantized, on images that neither training nor calibration saw."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier, read_metadata
from vit.data.datasets import Images, open_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifacts(digits_artifacts: Path) -> Path:
    return digits_artifacts


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_images("digits", "test")


def test_a_stream_of_held_out_digits(artifacts: Path, digits: Images) -> None:
    assert digits.targets is not None
    classify = Classifier(artifacts)
    assert classify.info.variant == "int8"
    assert classify.info.measured
    results = list(classify.stream(digits.items, workers=2))
    found = np.array([result.prediction.index if result.prediction else -1 for result in results])
    assert len(found) == 360
    assert (found == digits.targets).mean() >= 0.964
    batched = [r.prediction for r in classify.stream(digits.items, batch=16)]
    one = [classify(item) for item in digits.items[:40]]
    for a, b, c in zip(results[:40], batched[:40], one, strict=True):
        assert a.prediction is not None
        assert b is not None
        assert a.prediction.index == b.index == c.index
        assert a.prediction.score == pytest.approx(b.score, abs=1e-4)


def test_the_command_line_and_javascript_agree_with_python(
    artifacts: Path, digits: Images, tmp_path: Path
) -> None:
    for number, item in enumerate(digits.items[:30]):
        Image.fromarray(np.asarray(item)).save(tmp_path / f"{number:02}.png")
    paths = sorted(tmp_path.iterdir())
    classify = Classifier(artifacts / "model.int8.onnx", sha256=None)
    expected = [classify(path).label for path in paths]
    done = subprocess.run(
        [sys.executable, "-m", "runtime", artifacts, tmp_path], cwd=ROOT, capture_output=True, check=True
    )
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == expected
    javascript = ROOT / "javascript"
    if shutil.which("node") is None or not (javascript / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    command = ["node", javascript / "classify.mjs", artifacts / "model.int8.onnx", *paths]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    assert [json.loads(line)["label"] for line in lines] == expected


@pytest.mark.slow
def test_openvino_gives_the_answers_of_the_cpu(
    artifacts: Path, digits: Images, tmp_path: Path, new_python: Path
) -> None:
    """In an environment of its own: onnxruntime-openvino and onnxruntime overwrite each other."""
    packages = ["numpy", "pillow", "onnxruntime-openvino"]
    subprocess.run([new_python, "-m", "pip", "install", "--quiet", *packages], check=True)
    np.save(tmp_path / "digits.npy", np.stack([np.asarray(item) for item in digits.items]))
    done = subprocess.run(
        [new_python, "-c", ON_BOTH, artifacts, tmp_path / "digits.npy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    for name in ("model.onnx", "model.int8.onnx"):
        openvino, cpu = found["openvino"][name], found["cpu"][name]
        assert np.mean(np.array(openvino["labels"]) == np.array(cpu["labels"])) >= 0.99
        assert openvino["scores"] == pytest.approx(cpu["scores"], abs=0.1 if "int8" in name else 1e-4)


ON_BOTH = """
import json, sys
import numpy as np
from pathlib import Path
from runtime import Classifier
images, found = np.load(sys.argv[2]), {}
for device in ("openvino", "cpu"):
    for name in ("model.onnx", "model.int8.onnx"):
        classify = Classifier(Path(sys.argv[1], name), device=device)
        assert classify.info.device == device
        answers = [result.prediction for result in classify.stream(list(images))]
        labels, scores = [a.label for a in answers], [a.score for a in answers]
        found.setdefault(device, {})[name] = {"labels": labels, "scores": scores}
print(json.dumps(found))
"""


def test_int8_and_float_files_say_the_same_of_themselves(artifacts: Path) -> None:
    metadata = {name: read_metadata(artifacts / name) for name in ("model.onnx", "model.int8.onnx")}
    small, large = metadata["model.int8.onnx"], metadata["model.onnx"]
    assert (large.variant, small.variant) == ("float32", "int8")
    assert small.labels == large.labels == tuple("0123456789")
    assert small.preprocess == large.preprocess
    assert large.target == "any-cpu"
