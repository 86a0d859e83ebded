"""Files of an export as others get them: nothing private inside, and lines that run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.measure.limits import LimitResult
from runtime import Classifier, Preprocess
from tests.support.html_page import Page
from vit.checkpoint import save_checkpoint
from vit.config import ViTConfig
from vit.model import new_model

PERSON = "somebody"
LABELS = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's home, with a checkpoint, images and a working directory in it."""
    home = tmp_path_factory.mktemp("machine") / "home" / PERSON
    random = np.random.default_rng(0)
    for index, label in enumerate(LABELS):
        folder = home / "photos" / label
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(60 * index, 60 * index + 120, (40, 36, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    config = ViTConfig(image_size=(32, 32), patch_size=8, width=48, depth=2, heads=4, mlp_width=96, classes=3)
    (home / "work").mkdir()
    save_checkpoint(
        home / "runs" / "insects" / "model.safetensors",
        model=new_model(config, seed=0),
        preprocess=Preprocess(size=(32, 32)),
        labels=LABELS,
        recipe={"data": str(home / "photos")},
    )
    return home


def run(home: Path, root: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in the working directory of that person."""
    (home / "tmp").mkdir(exist_ok=True)
    own = {"HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(home / "tmp"), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or home / "work",
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def out(home: Path, root: Path) -> Path:
    """The folder of an export that was given absolute paths and a limit that cannot be judged."""
    options = ["--quantize", "--fp16", "--embedding", "--threads", "1"]
    options += ["--max-drift", "20", "--min-sqnr", "1"]
    paths = [str(home / "runs" / "insects"), f"--calibration={home / 'photos'}", "--out", str(home / "out")]
    run(home, root, "-m", "export", *paths, *options)
    return home / "out"


def test_nothing_tells_whose_machine_it_was(home: Path, out: Path, root: Path) -> None:
    run(
        home, root, "-m", "vit", "plots", str(home / "runs" / "insects"), "--data", str(home / "photos"),
        "--out", str(home / "plots"),
    )  # fmt: skip
    files = [*out.iterdir(), *(home / "plots").iterdir()]
    assert {".onnx", ".json", ".html", ".png"} <= {file.suffix for file in files}
    for file in files:
        data = file.read_bytes()
        for private in (PERSON, str(home), str(home / "work"), str(home / "tmp"), str(root)):
            assert private.encode() not in data, f"{file.name} holds {private}"


def test_the_report_says_when_and_how_it_was_made(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", report["made"]["date"])
    command = "python -m export runs/insects --calibration=photos --out out --quantize --fp16 --embedding"
    assert report["made"]["command"].startswith(command)
    assert {"torch", "onnxruntime"} <= set(report["environment"]["packages"])
    assert report["environment"]["cpu_kind"] in ("x86-vnni", "x86", "arm64", "other")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.flaws() == []
    assert command in page.text
    assert report["made"]["date"] in page.text


def test_a_limit_that_cannot_be_judged_is_not_met(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["status"] == "not judged"
    reason = report["verdict"]["text"].removeprefix("cannot be judged: ").split(". Met: ")[0]
    assert reason in report["warnings"]  # a model that learned nothing is no better than chance
    assert {each["limit"]: each["status"] for each in report["verdict"]["limits"]} == {
        "--max-drift": "not judged",
        "--min-sqnr": "met",
    }
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert f"Limits {report['verdict']['text'][:60]}" in page.text


def test_the_lines_of_the_report_run_as_they_stand(home: Path, out: Path, root: Path, tmp_path: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    python, shell = page.code[:2]
    assert len(python.splitlines()) == 3
    folder = Path(shutil.copytree(out, tmp_path / "moved"))
    Image.new("RGB", (50, 40), (200, 30, 30)).save(folder / "photo.jpg")
    printed = run(home, root, "-c", python, cwd=folder).stdout.strip()
    assert printed in LABELS
    program, *words = shlex.split(shell)
    assert program == "python"
    line = json.loads(run(home, root, *words, cwd=folder).stdout)
    assert (line["path"], line["label"]) == ("photo.jpg", printed)


@pytest.mark.parametrize("file", ["model.onnx", "model.int8.onnx", "model.fp16.onnx"])
def test_a_session_on_the_cpu_holds_every_product_of_a_file(out: Path, file: str) -> None:
    """The nodes that the metadata counts are those that ONNX Runtime lists, before it fuses them."""
    placement = Classifier(out / file, device="cpu").info.placement
    assert placement is not None
    assert (placement.find("cpu").share, placement.unlisted) == (1.0, 0.0)
    assert placement.to_dict()["parts"][0]["operators"]["Gemm"] >= 14


def test_fields_of_the_report_are_those_of_the_reference(out: Path, root: Path) -> None:
    """This export has everything that an export can have, but for merging and a temperature."""
    text = (root / "docs" / "reference" / "file-formats.md").read_text(encoding="utf-8")
    tables = [
        {name for cell in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)}
        for table in text.split("## report.json")[1].split("\n## ")[0].split("| field of a ")
    ]
    document, judged, model = tables
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    absent = {"merging", "reliability", "npu", "thresholds"}  # a temperature needs 100 images
    assert set(report) == document - absent
    assert {name for each in report["verdict"]["limits"] for name in each} == judged
    assert {field.name for field in fields(LimitResult)} == judged
    assert {name for each in report["models"].values() for name in each} == model
