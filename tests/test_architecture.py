"""The rules of the house: who imports whom, and which names others may rely on."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOMS = {"runtime", "vit", "calibration", "export"}
MAY_IMPORT = {
    "runtime": set(),
    "vit": {"runtime", "calibration"},  # of calibration the plan alone, see below
    "calibration": {"runtime"},
    "export": {"runtime", "vit", "calibration"},
}
NEVER_ON_A_DEVICE = {"torch", "onnx", "onnxscript", "onnx_ir", "scipy", "sklearn", "safetensors", "tqdm"}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_what_they_stand_on(room: str, root: Path) -> None:
    files = sorted((root / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = (imported(path) & ROOMS) - MAY_IMPORT[room] - {room}
        assert not wrong, f"{path.relative_to(root)} imports {wrong}"


def test_training_knows_of_calibration_the_plan_alone(root: Path) -> None:
    """A plan is plain data: training with it must not need the packages that write model files."""
    for path in (root / "vit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("calibration"):
                assert node.module == "calibration.plan", path
    loaded = modules_after("import vit.training.fake_quantization, vit.training.setup", root)
    assert "calibration" in loaded
    assert not loaded & {"onnx", "onnx_ir", "onnxruntime", "export"}


def test_the_runtime_does_not_know_its_own_name(root: Path) -> None:
    """An app may keep a copy of the folder under a name of its own."""
    for path in (root / "runtime").rglob("*.py"):
        assert "runtime" not in imported(path), f"{path.relative_to(root)}: write a relative import"


@pytest.mark.parametrize("room", ["runtime", "calibration"])
def test_torch_stays_outside(room: str, root: Path) -> None:
    forbidden = NEVER_ON_A_DEVICE if room == "runtime" else {"torch", "safetensors", "sklearn"}
    for path in (root / room).rglob("*.py"):
        assert not imported(path) & forbidden, path


LOADED = """
import json, sys
{statement}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def modules_after(statement: str, root: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(statement=statement)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_importing_the_runtime_brings_nothing_of_training(root: Path) -> None:
    names = "ArtifactError, Classifier, DeviceError, Metadata, ImageError, Prediction, Preprocess, Result"
    loaded = modules_after(f"from runtime import {names}", root)
    assert "onnxruntime" in loaded  # the classifier is really there
    assert not loaded & (NEVER_ON_A_DEVICE | (ROOMS - {"runtime"}))


def test_the_bare_import_does_not_need_onnxruntime(root: Path) -> None:
    loaded = modules_after("import runtime", root)
    assert "runtime" in loaded
    assert "onnxruntime" not in loaded


def test_one_import_of_onnx_runtime(root: Path) -> None:
    """Ruff finds another one in Python (TID251); this sees scripts in strings, JavaScript and C++, too."""
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.mjs", "*.cpp"], cwd=root, capture_output=True, text=True
    )
    tracked = names.stdout.split() or pytest.skip("needs a git checkout")
    loads = re.compile(
        r"^\s*(?:import|from)\s+onnxruntime\b|(?:import|require|import_module)\(.onnxruntime|onnxruntime_cxx_api\.h",
        re.MULTILINE,
    )
    found = {name for name in tracked if loads.search((root / name).read_text(encoding="utf-8"))}
    assert found == {"runtime/onnx_runtime.py", "javascript/node.mjs", "examples/cpp/classify.cpp"}
    for name in found:
        assert "ORT_DISABLE_TELEMETRY" in (root / name.replace("onnx_runtime", "telemetry")).read_text()


def test_calibration_works_without_torch(root: Path) -> None:
    statement = "import calibration.quantize_model, calibration.measure.per_layer, calibration.measure.drift"
    assert not modules_after(statement, root) & {"torch", "vit", "export"}


def test_public_names_are_frozen() -> None:
    """Whoever embeds the runtime relies on these: a name that goes, or comes, is a decision."""
    import runtime

    assert runtime.__all__ == [
        "ArtifactError",
        "Candidate",
        "Classifier",
        "Device",
        "DeviceCheck",
        "DeviceError",
        "DeviceOptions",
        "Embedded",
        "Embedder",
        "ImageError",
        "ImageSource",
        "Metadata",
        "ModelInfo",
        "Placement",
        "Prediction",
        "Preprocess",
        "Result",
        "available_devices",
        "check_model",
        "find_images",
        "read_metadata",
    ]
    with pytest.raises(AttributeError, match="no attribute 'Classifyer'"):
        _ = runtime.Classifyer  # type: ignore[attr-defined]


def test_documents_beside_an_onnx_model_are_read_without_torch(root: Path) -> None:
    loaded = modules_after("import vit.pretrained.description, vit.pretrained.preprocessing", root)
    assert "torch" not in loaded
    assert "safetensors" not in loaded


def test_sources_are_checked_without_torch(root: Path) -> None:
    """A wrong command is refused in a second: reading an ONNX model, and finding weights, need no torch."""
    statement = "import export.sources.read_source, export.sources.onnx_file, vit.pretrained.weight_files"
    assert "torch" not in modules_after(statement, root)


def test_text_files_have_an_encoding(root: Path) -> None:
    """The linter sees open() and paths that it knows; this sees every read_text and write_text."""
    found = []
    for folder in sorted(ROOMS):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = (
                    node.func.attr
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                    else ""
                )
                if name not in ("read_text", "write_text") or not isinstance(node, ast.Call):
                    continue
                if not any(keyword.arg == "encoding" for keyword in node.keywords):
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not found


def test_public_names_are_the_same_for_type_checkers_and_at_run_time(root: Path) -> None:
    """`runtime` imports on demand: what it gives must be what its own imports for type checkers say."""
    import runtime

    tree = ast.parse((root / "runtime" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.level == 1
    }
    assert sorted(homes) == runtime.__all__ == dir(runtime)
    for name, home in homes.items():
        assert getattr(runtime, name) is getattr(importlib.import_module(f"runtime.{home}"), name)
        if name not in ("Device", "ImageSource"):  # aliases, which have no name of their own
            assert getattr(runtime, name).__name__ == name


def test_files_beside_the_code_travel_in_the_wheel(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, names in patterns.items()
        if package != "*"
        for name in names
        for path in root.joinpath(*package.split(".")).glob(name)
    }
    for room in sorted(ROOMS):
        beside = {
            path
            for path in (root / room).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed"
        }
        assert beside <= packed, beside - packed
