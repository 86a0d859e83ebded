"""Float files on Qualcomm's NPU, or its simulator: all nodes there, and the logits of the CPU (make npu)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from runtime import available_devices, read_metadata
from runtime.session import open_session

MODELS = Path(__file__).parents[2] / "artifacts" / "npu"
LEAST = 45  # dB; found: 54 to 56 for the digits

pytest.importorskip("onnxruntime_qnn", reason="needs Qualcomm's plugin: make npu installs it in .venv-npu")
pytestmark = [
    pytest.mark.skipif("qnn" not in available_devices(), reason="needs an NPU of Qualcomm, or x86-64 Linux"),
    pytest.mark.skipif(not MODELS.is_dir(), reason="needs the digits in artifacts/npu: make npu"),
]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    preprocess = read_metadata(MODELS / "model.onnx").preprocess
    return np.stack([preprocess(image) for image in sorted((MODELS / "images").glob("*.png"))])


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_the_float_files_run_there_alone(name: str, pixels: np.ndarray) -> None:
    on_npu = open_session(MODELS / name, device="qnn")
    parts = Counter(part.ep_name for part in on_npu.get_provider_graph_assignment_info())
    assert parts == {"QNNExecutionProvider": 1}
    on_cpu = open_session(MODELS / "model.onnx", device="cpu")
    expected = on_cpu.run(["logits"], {"pixels": pixels})[0]
    found = np.concatenate([on_npu.run(["logits"], {"pixels": image[None]})[0] for image in pixels])
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()) > LEAST
