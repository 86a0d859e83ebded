"""Names that others may import from `export`; the import alone is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import export

LIGHT = """
import sys
import export
assert not {"torch", "onnx", "onnx_ir", "onnxruntime", "jinja2", "numpy"} & set(sys.modules), sys.modules
from export import export
assert callable(export)
"""


def test_public_names_are_frozen() -> None:
    assert export.__all__ == ["Options", "Results", "export"]
    assert all(getattr(export, name).__module__.startswith("export.") for name in export.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        _ = export.missing


def test_the_import_loads_nothing_heavy(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_measurement_needs_no_jinja(root: Path) -> None:
    line = "import sys, export.pipeline; sys.exit(bool({'jinja2', 'markupsafe'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", line], cwd=root, timeout=120, check=False)
    assert done.returncode == 0
