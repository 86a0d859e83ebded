"""The face of the package: which names apps may rely on, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import calibration

NAMES = [
    "Budget",
    "BudgetError",
    "Drift",
    "FallbackError",
    "GraphError",
    "PlanError",
    "PlanSearch",
    "QuantizationPlan",
    "QuantizedModel",
    "apply_plan",
    "measure_drift",
    "quantize",
    "read_plan",
    "search_plan",
    "write_plan",
]


def test_public_names_are_frozen() -> None:
    assert calibration.__all__ == dir(calibration) == NAMES
    with pytest.raises(AttributeError, match="no attribute 'quantize_it'"):
        _ = calibration.quantize_it  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_what_its_module_defines(name: str) -> None:
    found = getattr(calibration, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found
    assert found.__doc__


def test_a_plan_is_read_without_onnx(root: Path) -> None:
    code = "import sys; from calibration import read_plan; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"onnx", "onnx_ir", "onnxruntime", "scipy"}
