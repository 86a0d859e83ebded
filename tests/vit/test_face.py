"""The names that an app imports from `vit`."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vit

NAMES = sorted(
    [
        *("Checkpoint", "CheckpointError", "ConfigError", "Recipe", "TrainingData", "ViT", "ViTConfig"),
        *("import_model", "load_checkpoint", "make_config", "new_model", "open_data", "preset"),
        *("save_checkpoint", "train"),
    ]
)


def test_the_names_are_frozen() -> None:
    """A name that is added or removed is a decision."""
    assert vit.__all__ == dir(vit) == NAMES
    assert all(getattr(vit, name).__name__ == name for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = vit.trian  # type: ignore[attr-defined]


def test_configs_need_no_torch() -> None:
    program = "import sys; from vit import ViTConfig, Recipe, TrainingData; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
