"""The JavaScript package: its own tests (golden bytes, fuzz), its types, and what would be published."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "javascript"


@pytest.fixture(autouse=True)
def installed() -> None:
    if shutil.which("node") is None or not (PACKAGE / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")


@pytest.mark.slow
def test_installing_as_documented_needs_no_install_script(model: Path, images: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^npm install (.*?) +#", (PACKAGE / "README.md").read_text(), re.M)
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(PACKAGE, tmp_path / "vit-edge" / "javascript", ignore=ignored)
    command = ["npm", "install", "--no-audit", "--no-fund", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = ["npx", "vit-edge-classify", str(model), str(images / "a.png")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout)["label"] == "red", done.stderr


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=300)


def test_its_own_tests_pass() -> None:
    done = run("npm", "test", "--silent")
    assert done.returncode == 0, done.stdout[-5000:]
    passed = int(done.stdout.partition("# pass ")[2].split()[0])
    assert passed >= 46  # a golden case each, at least


def test_the_types_are_those_of_the_code(tmp_path: Path) -> None:
    done = run("npx", "--no-install", "tsc", "--project", "tsconfig.json", "--outDir", str(tmp_path))
    assert done.returncode == 0, done.stdout
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (PACKAGE / "types").iterdir()}
    assert made == kept, "run npm run types in javascript/"


def test_what_would_be_published() -> None:
    (packed,) = json.loads(run("npm", "pack", "--dry-run", "--json", "--ignore-scripts").stdout)
    paths = {file["path"] for file in packed["files"]}
    modules = {path.name for path in PACKAGE.glob("*.mjs")}
    types = {f"types/{path.name}" for path in (PACKAGE / "types").iterdir()}
    assert paths == modules | types | {"package.json", "README.md", "LICENSE"}
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    manifest = json.loads((PACKAGE / "package.json").read_text())
    targets = [target for entry in manifest["exports"].values() for target in entry.values()]
    assert {target.removeprefix("./") for target in targets} <= paths
    assert manifest["license"] == "MIT"
