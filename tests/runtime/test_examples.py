"""The examples, run as their first lines say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier, Preprocess

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=True
    )


def test_script(model: Path, images: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "classify.py", model, images / "a.png", images / "text.png").stdout
    assert "float32 model of 3 classes on cpu" in lines
    assert f"{images / 'a.png'}: red (" in lines
    assert "it is no image" in lines


def test_webcam(model: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "webcam.py", model, "--frames", "4").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert all(line.split()[1] in ("red", "green", "blue") for line in lines)


@pytest.mark.parametrize("script", ["classify.py", "webcam.py", "http_service.py"])
def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, script: str) -> None:
    if script == "http_service.py":
        pytest.importorskip("starlette")
        pytest.importorskip("uvicorn")
    done = subprocess.run(
        [
            sys.executable,
            EXAMPLES / script,
            tmp_path / "nowhere.onnx",
            *(["a.png"] * (script == "classify.py")),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "there is no such model file; python -m export makes one" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


NO_CAMERA = (
    "class VideoCapture:\n    def __init__(self, number): pass\n    def isOpened(self): return False\n"
)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("raise ImportError", "--camera needs OpenCV: pip install opencv-python-headless"),
        (NO_CAMERA, "expected a camera with number 7, found none that opens; the first is --camera 0"),
    ],
    ids=["no OpenCV", "no camera"],
)
def test_webcam_without_a_camera(model: Path, tmp_path: Path, module: str, line: str) -> None:
    (tmp_path / "cv2.py").write_text(module)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "webcam.py", model, "--camera", "7"],
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


def classify_in_javascript(*arguments: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in in_javascript(*arguments).stdout.splitlines()]


def in_javascript(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    folder = ROOT / "javascript"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    command = ["node", str(folder / "classify.mjs"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=check)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocess(size=(32, 32)),
        Preprocess(size=(32, 32), resize="crop", resize_to=36, interpolation="bicubic"),
        Preprocess(size=(32, 32), resize="crop", interpolation="lanczos"),
    ],
    ids=lambda spec: f"{spec.resize}-{spec.interpolation}",
)
def test_javascript_gives_the_same_labels(
    make_model: Any, imagenet_photos: list[Path], spec: Preprocess
) -> None:
    model = make_model(preprocess=spec)
    photos = imagenet_photos[::20]
    classify = Classifier(model)
    answers = classify_in_javascript(model, *photos)
    assert [answer["path"] for answer in answers] == list(map(str, photos))
    for answer in answers:
        prediction = classify(answer["path"])
        assert (answer["label"], answer["index"]) == (prediction.label, prediction.index)
        assert answer["score"] == pytest.approx(prediction.score, abs=0.02)


def test_javascript_reads_transparency_and_refuses_strangers(model: Path, images: Path) -> None:
    (answer,) = classify_in_javascript(model, images / "a.png")
    assert answer["label"] == "red"
    refused = in_javascript(images / "notes.txt", images / "a.png", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"{images / 'notes.txt'}: not an ONNX model")


def test_javascript_goes_on_after_a_bad_image(model: Path, images: Path) -> None:
    paths = [images / name for name in ("a.png", "empty.jpg", "text.png", "missing.png", "b.jpg")]
    done = in_javascript(model, *paths, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    no_self_test = "self-test on this machine: no self-test: the file carries none; export it again"
    assert (done.returncode, done.stderr) == (1, f"{model}: {no_self_test}\n")
    assert [answer["path"] for answer in answers] == list(map(str, paths))
    assert [answer["label"] for answer in answers] == ["red", None, None, None, "green"]
    assert [answer["error"] for answer in answers] == [
        None,
        "it is empty (zero bytes)",
        "it is neither a JPEG nor a PNG; convert it",
        "it cannot be opened: ENOENT",
        None,
    ]


def test_javascript_knows_the_white_of_twelve_bits(make_model: Any, tmp_path: Path) -> None:
    spec = Preprocess(size=(32, 32), white_level=4095)
    model = make_model(preprocess=spec)
    values = np.linspace(0, 5000, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "gray.png")
    (answer,) = classify_in_javascript(model, tmp_path / "gray.png")
    assert answer["score"] == pytest.approx(Classifier(model)(tmp_path / "gray.png").score, abs=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_javascript_turns_images_upright(make_model: Any, tmp_path: Path, form: str) -> None:
    """The model sees a wide strip: all red in an upright image, three quarters red in one on its side."""
    spec = Preprocess(size=(4, 16), resize="crop")
    model = make_model(size=(4, 16), preprocess=spec)
    image = Image.new("RGB", (64, 48), (0, 0, 90))
    image.paste((20, 0, 0), (0, 0, 64, 36))
    turned = {6: 90, 8: 270}  # what the camera stored, counterclockwise
    for orientation, angle in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{form.lower()}"
        image.rotate(angle, expand=True).save(path, form, exif=exif)
    paths = sorted(tmp_path.glob(f"*.{form.lower()}"))
    scores = [answer["score"] for answer in classify_in_javascript(model, *paths)]
    expected = [Classifier(model)(path).score for path in paths]
    assert scores == pytest.approx(expected, abs=0.01)
    as_stored = Classifier(make_model("stored.onnx", size=(4, 16), preprocess=replace(spec, exif=False)))
    assert all(abs(as_stored(path).score - score) > 0.05 for path, score in zip(paths, scores, strict=True))
