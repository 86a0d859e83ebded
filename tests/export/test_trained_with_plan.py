"""From a limit that INT8 misses to a model trained with the plan: the commands as a user types them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.graph.memory import open_graph_session
from calibration.plan import read_plan
from calibration.write import write_plan
from export.__main__ import main as export
from export.sources.from_torch import export_float_graph
from runtime.onnx_runtime import onnxruntime as ort
from tools.expected_drift import random_checkpoint
from vit.__main__ import main as vit
from vit.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/train|test/<digit>/`, and `float`, a run that learned nothing."""
    folder, random = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for digit in range(10):
            images = folder / "photos" / split / str(digit)
            images.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (4, 4, 3), np.uint8)
                Image.fromarray(pixels).resize((32, 32)).save(images / f"{index}.png")
    random_checkpoint(folder / "float" / "model.safetensors")
    return folder


def test_the_message_of_a_missed_limit_is_the_command_that_trains(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    limit = ["--quantize", "--calibration", "photos", "--min-sqnr", "199", "--out", "out"]
    assert export(["float", *limit]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No model file was written" in said
    assert [path.name for path in (place / "out").iterdir()] == ["plan-to-train.json"]
    words = shlex.split(said.partition("or train with this plan: ")[2].replace("PHOTOS", "photos"))
    assert words[:4] == ["python", "-m", "vit", "train"]
    assert vit([*words[3:], "--epochs", "1", "--lr", "1e-3"]) == 0
    run = place / "float-int8"
    plan = read_plan(place / "out" / "plan-to-train.json")
    assert read_plan(run / "plan.json") == plan
    assert (run / "float.safetensors").read_bytes() == (place / "float" / "model.safetensors").read_bytes()
    student, teacher = load_checkpoint(run), load_checkpoint(place / "float")
    assert student.recipe["plan"] == plan.digest
    assert student.recipe["from"] == student.recipe["teacher"] == teacher.digest
    assert not torch.equal(student.model.head.weight, teacher.model.head.weight)

    # The file has what was trained; it is compared with the float model.
    assert (
        export(["float-int8", "--plan", "float-int8/plan.json", "--evaluate", "photos", "--out", "new"]) == 0
    )
    assert "float32 is its teacher, float; INT8 is compared with it" in capsys.readouterr().err
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(place.glob("photos/test/*/0.png"))])
    with torch.inference_mode():
        expected = teacher.model(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(run_file(place / "new" / "model.onnx", pixels), expected, atol=1e-4)
    graph = write_plan(export_float_graph(student.model).model, plan)
    session = open_graph_session(graph, threads=1, target=plan.target)
    (quantized,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(run_file(place / "new" / "model.int8.onnx", pixels), quantized, atol=1e-4)
    report = json.loads((place / "new" / "report.json").read_text())
    assert report["source"]["trained_with_plan"] == plan.digest
    assert (report["source"]["float32"], report["source"]["float32_sha256"]) == ("float", teacher.digest)
    noise = np.square(expected - quantized).sum()
    sqnr = 10 * np.log10(np.square(expected).sum() / noise)
    assert report["models"]["int8"]["drift"]["sqnr"] == pytest.approx(sqnr, abs=0.1)

    # Another plan is said, a missed limit does not ask for training again, a lost teacher is named.
    calibrated = ["--quantize", "--calibration", "photos", "--min-sqnr", "199", "--out", "other"]
    assert export(["float-int8", *calibrated]) == 1
    said = capsys.readouterr().err
    assert "or train with this plan" not in said
    assert vit(["train", "--data", "photos", "--from", "float-int8", "--plan", "out/plan-to-train.json",
                "--out", "again"]) == 2  # fmt: skip
    assert "expected beside --plan a float model, found one trained with a plan" in capsys.readouterr().err
    shutil.copy(run / "model.safetensors", run / "float.safetensors")
    assert export(["float-int8", "--evaluate", "photos", "--out", "lost"]) == 2
    assert f"SHA-256 {teacher.digest}, found {student.digest}" in capsys.readouterr().err
    (run / "float.safetensors").unlink()
    assert export(["float-int8", "--evaluate", "photos", "--out", "lost"]) == 2
    assert f"trained from, SHA-256 {teacher.digest}, found none; copy it there" in capsys.readouterr().err


def run_file(file: Path, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


REFUSED = (
    (["--plan", "plan.json"], "--plan trains the float model that it was made for; add --from RUN"),
    (["--plan", "none.json", "--from", "float"], "none.json: no such file"),
    (["--preset", "quantize", "--from", "float"], "trains with the plan of an export; add --plan PLAN"),
    (["--plan", "plan.json", "--from", "float", "--teacher", "float"], "--teacher does not go with --plan"),
    (
        ["--plan", "plan.json", "--from", "float", "--image-size", "64"],
        "--image-size does not go with --plan",
    ),
    (
        ["--plan", "plan.json", "--from", "float", "--preset", "probe"],
        "--preset probe does not go with --plan",
    ),
    (["--plan", "plan.json", "--from", "float", "--merge-tokens", "2"], "--merge-tokens does not go with"),
    (
        ["--plan", "plan.json", "--from", "float", "--data", "few"],
        "images of the model's classes .*found a, b",
    ),
    (
        ["--plan", "plan.json", "--from", "float"],
        "plan.json: the plan names .blocks.99.mlp.fc1., which this model of 14 ",
    ),
)


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_does_not_go_with_a_plan_is_refused_in_one_line(
    words: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    for name in ("a", "b"):
        shutil.copytree("photos/train/0", f"few/{name}", dirs_exist_ok=True)
    plan = {"format": "vit-edge plan", "version": 1, "target": "any-cpu"}
    plan |= {"linears": {"blocks.99.mlp.fc1": {"precision": "float32"}}}
    Path("plan.json").write_text(json.dumps(plan), encoding="utf-8")
    assert vit(["train", "--data", "photos", "--out", "refused", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, said[-1]), said
