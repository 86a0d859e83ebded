"""A real ViT-B on OpenVINO's plugin, beside the plain ONNX Runtime: the CPU's labels, every node there."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.devices import without_vnni

ROOT = Path(__file__).parents[2]
PHOTOS = 20
BOTH = """
import json, sys
from runtime import Classifier

model, *photos = sys.argv[1:]
on_cpu = Classifier(model, device="cpu")
there = Classifier(model, device="openvino")
labels = [[classify(photo).index for photo in photos] for classify in (on_cpu, there)]
part = there.info.placement.find("openvino")
check = there.check()
print(json.dumps([labels, part.share, part.parts, check.passed, check.verdict]))
"""

pytestmark = [
    pytest.mark.skipif(
        find_spec("onnxruntime_ep_openvino") is None, reason="needs OpenVINO's plugin, for x86-64 and Windows"
    ),
]


def command_of_intel() -> list[str]:
    """Return what goes before a command, so that it runs as on an Intel CPU: the plugin serves no other."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8"):
        return []
    if sys.platform != "linux" or any(shutil.which(tool) is None for tool in without_vnni.TOOLS):
        pytest.skip(f"needs a CPU of Intel, or gcc and binutils on Linux; found {platform.processor()}")
    return [sys.executable, "-m", "tools.devices.as_intel"]


@pytest.fixture(scope="module")
def vit_b(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real ViT-B/16, exported to INT8; a minute on one core."""
    folder = tmp_path_factory.mktemp("vit-b")
    calibration = folder / "calibration"
    calibration.mkdir()
    for photo in sorted((shared / "data" / "imagenet-200").glob("*.JPEG"))[-32:]:
        shutil.copy(photo, calibration)
    for words in (
        (str(shared / "tools" / "pretrained_vit_b16.py"), folder / "weights"),
        ("-m", "vit", "import", folder / "weights", "--out", folder / "run"),
        ("-m", "export", folder / "run", "--quantize", "--calibration", calibration, "--out", folder / "out"),
    ):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.onnx"])
def test_labels_and_placement_of_real_photos(name: str, vit_b: Path, imagenet_photos: list[Path]) -> None:
    command = [*command_of_intel(), sys.executable, "-c", BOTH, vit_b / name, *imagenet_photos[:PHOTOS]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (on_cpu, there), share, parts, passed, verdict = json.loads(done.stdout.splitlines()[-1])
    assert sum(a == b for a, b in zip(on_cpu, there, strict=True)) >= PHOTOS - 1
    assert share == 1
    assert parts == 1
    assert passed, verdict
