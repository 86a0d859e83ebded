"""The self-test in JavaScript: its table is Python's, and the command checks a file that the export wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from runtime.self_test import check, diagnose, thresholds
from tests.support.changed_models import mirror_weights

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "javascript"
TABLE = """
import { failedCheck, FAULTS, minSqnr } from "./check.mjs";
const fields = Object.keys(failedCheck("wasm", "labels", ""));
const outputs = { logits: { float32: [1], file: [1.1] } }; // 20 dB of quantization
const minima = ["wasm", "webgpu"].flatMap((device) =>
  ["float32", "float16", "int8"].map((variant) => [device, variant, minSqnr(device, variant, { outputs })]),
);
console.log(JSON.stringify({ minima, faults: FAULTS, fields }));
"""


def run_node(*arguments: Any) -> subprocess.CompletedProcess[str]:
    if shutil.which("node") is None or not (PACKAGE / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=120, check=False)


def test_thresholds_faults_and_fields_are_those_of_python() -> None:
    table = json.loads(run_node("--input-type=module", "--eval", TABLE).stdout)
    for device, variant, minimum in table["minima"]:
        on_gpu = "16-bit floats" if variant == "float16" else "float32"
        arithmetic = on_gpu if device == "webgpu" else "another CPU"
        expected = thresholds.min_sqnr(arithmetic, variant, 20.0)
        assert minimum == pytest.approx(expected), (device, variant)
    assert set(table["faults"]) <= set(get_args(diagnose.Fault))
    assert set(table["fields"]) <= {each.name for each in fields(check.DeviceCheck)}


def test_node_checks_the_files_of_an_export(digits_artifacts: Path) -> None:
    for name in ("model.int8.onnx", "model.onnx"):
        done = run_node("classify.mjs", digits_artifacts / name, "--check")
        assert done.returncode == 0, done.stdout + done.stderr
        check = json.loads(done.stdout)
        assert (check["passed"], check["fault"], check["device"]) == (True, None, "cpu")
        assert check["preprocessing_equal"]
        assert check["labels_equal"] == check["images"] >= 4


def test_node_says_what_the_first_images_showed(digits_artifacts: Path, tmp_path: Path) -> None:
    done = run_node("classify.mjs", digits_artifacts / "model.int8.onnx", "none.png")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "model.int8.onnx: self-test on this machine: passed: 2 of 2 labels equal, " in line
    flipped = mirror_weights(digits_artifacts / "model.int8.onnx", tmp_path / "flipped.onnx")
    refused = run_node("classify.mjs", flipped, "none.png")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"{flipped}: the self-test failed: ")
    checked = run_node("classify.mjs", flipped, "--check")
    assert (checked.returncode, json.loads(checked.stdout)["fault"]) == (1, "weights")
