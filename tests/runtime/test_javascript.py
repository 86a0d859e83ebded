"""The JavaScript package: its own tests (golden bytes, fuzz), and what would be published, with its types."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.model_file.onnx_file import OnnxError, summarize_onnx
from tests.support.onnx_mutants import mutants

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


JUDGE = """
import { readFileSync } from "node:fs";
import { ModelError } from "./errors.mjs";
import { summarize } from "./onnx.mjs";
const plain = (_, value) => (value instanceof Map || value instanceof Set ? [...value].sort() : value);
const judge = (hex) => {
  try {
    return summarize(Uint8Array.from(Buffer.from(hex, "hex")));
  } catch (error) {
    if (!(error instanceof ModelError)) throw error;
    return null;
  }
};
console.log(JSON.stringify(readFileSync(0, "utf-8").split("\\n").map(judge), plain));
"""


def outline(content: bytes) -> dict[str, object] | None:
    try:
        found = summarize_onnx(content)
    except OnnxError:
        return None
    return {
        "irVersion": found.ir_version,
        "opsets": [list(each) for each in sorted(found.opsets.items())],
        "metadata": [list(each) for each in sorted(found.metadata.items())],
        "domains": sorted(found.domains),
        "externalData": found.external_data,
        "subgraphs": found.subgraphs,
        "functions": found.functions,
    }


def test_mutants_of_model_files_are_judged_as_in_python() -> None:
    """Python is compared with onnx's parser in tests/runtime/model_file/test_onnx_file.py."""
    contents = list(mutants(1000, seed=3))
    command = ["node", "--input-type=module", "--eval", JUDGE]
    lines = "\n".join(content.hex() for content in contents)
    done = subprocess.run(command, cwd=PACKAGE, input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    judged, expected = json.loads(done.stdout), [outline(content) for content in contents]
    assert sum(each is not None for each in expected) > 100
    for content, ours, theirs in zip(contents, expected, judged, strict=True):
        assert theirs == ours, content.hex()


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes like these")
def test_a_path_that_is_no_file_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "zero"):
        done = run("node", "classify.mjs", str(tmp_path / name), "photo.jpg")
        assert (done.returncode, "expected a file, found a folder, a pipe or a device" in done.stderr) == (
            2,
            True,
        )


def test_what_would_be_published(tmp_path: Path) -> None:
    """The package with its types, which are made from the code when it is packed, and in no commit."""
    copy = tmp_path / "javascript"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("node_modules", "types"))
    (copy / "node_modules").symlink_to(PACKAGE / "node_modules")
    command = ["npm", "pack", "--dry-run", "--json"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    paths = {file["path"] for file in json.loads(done.stdout)[0]["files"]}
    modules = {path.name for path in PACKAGE.glob("*.mjs")}
    types = {path for path in paths if path.startswith("types/")}
    assert paths == modules | types | {"package.json", "README.md", "LICENSE"}
    assert types == {f"types/{name.removesuffix('.mjs')}.d.mts" for name in modules - {"classify.mjs"}}
    assert "class Classifier" in (copy / "types" / "classifier.d.mts").read_text()
    tracked = subprocess.run(
        ["git", "ls-files", "javascript/types"], cwd=ROOT, capture_output=True, text=True
    )
    assert tracked.stdout == ""
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    manifest = json.loads((PACKAGE / "package.json").read_text())
    targets = [target for entry in manifest["exports"].values() for target in entry.values()]
    assert {target.removeprefix("./") for target in targets} <= paths
    assert manifest["license"] == "MIT"
