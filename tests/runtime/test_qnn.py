"""Files on Qualcomm's NPU, or its simulator: all nodes there, and the logits of the CPU (make npu)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from runtime import DeviceError, available_devices, read_metadata
from runtime.devices import CHIPS, Chip, DeviceOptions
from runtime.load_model import load_model
from runtime.plugins import is_simulated
from runtime.self_test.check import check_model
from runtime.session import open_session

MODELS = Path(__file__).parents[2] / "artifacts" / "npu"
# dB against float32 on the CPU; found: 54 to 56 for the float files of the digits, 39.6 to 40.9 for INT8.
LEAST = {"model.onnx": 45, "model.fp16.onnx": 45, "model.npu.onnx": 36}

pytest.importorskip("onnxruntime_qnn", reason="needs Qualcomm's plugin: make npu installs it in .venv-npu")
pytestmark = [
    pytest.mark.skipif("qnn" not in available_devices(), reason="needs an NPU of Qualcomm, or x86-64 Linux"),
    pytest.mark.skipif(not MODELS.is_dir(), reason="needs the digits in artifacts/npu: make npu"),
]
simulated = pytest.mark.skipif(
    "qnn" in available_devices() and not is_simulated("qnn"), reason="an NPU is no simulator"
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    preprocess = read_metadata(MODELS / "model.onnx").preprocess
    return np.stack([preprocess(image) for image in sorted((MODELS / "images").glob("*.png"))])


def measure_there(name: str, pixels: np.ndarray, chip: Chip | None = None) -> float:
    """Return the SQNR against float32 on the CPU; the labels are equal on all images but one at most."""
    target = read_metadata(MODELS / name).target
    on_npu = open_session(MODELS / name, device="qnn", target=target, options=DeviceOptions(chip=chip))
    parts = Counter(part.ep_name for part in on_npu.get_provider_graph_assignment_info())
    assert parts == {"QNNExecutionProvider": 1}
    on_cpu = open_session(MODELS / "model.onnx", device="cpu")
    expected = on_cpu.run(["logits"], {"pixels": pixels})[0]
    found = np.concatenate([on_npu.run(["logits"], {"pixels": image[None]})[0] for image in pixels])
    assert (found.argmax(1) != expected.argmax(1)).sum() <= 1
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize("name", LEAST)
def test_the_files_run_there_alone(name: str, pixels: np.ndarray) -> None:
    assert measure_there(name, pixels) > LEAST[name]


@simulated
@pytest.mark.parametrize("chip", CHIPS)
def test_the_file_for_an_npu_runs_on_every_chip(chip: Chip, pixels: np.ndarray) -> None:
    assert measure_there("model.npu.onnx", pixels[:6], chip) > LEAST["model.npu.onnx"] - 3


@simulated
def test_a_chip_without_float16_refuses_the_float16_file() -> None:
    with pytest.raises(DeviceError, match=r"qnn holds 0\.0 % of the multiply-adds of .*model.fp16.onnx"):
        load_model(
            MODELS / "model.fp16.onnx",
            device="qnn",
            threads=1,
            sha256=None,
            options=DeviceOptions(chip="qcs6490"),
        )


@simulated
@pytest.mark.parametrize("name", LEAST)
def test_the_self_test_passes_in_the_simulator_and_shows_no_time(name: str) -> None:
    found = check_model(MODELS / name, device="qnn")
    assert found.passed, found.verdict
    assert "minimum on a simulated NPU: " in found.verdict
    assert (found.simulated, found.latency_ms, found.ratio) == (True, None, None)


@simulated
def test_performance_and_finalization_change_no_answer(pixels: np.ndarray) -> None:
    answers = [
        open_session(MODELS / "model.npu.onnx", device="qnn", target="npu", options=options).run(
            ["logits"], {"pixels": pixels[:1]}
        )[0]
        for options in (DeviceOptions(), DeviceOptions(performance="burst", finalization=3))
    ]
    np.testing.assert_allclose(answers[0], answers[1], atol=0.05)
