"""The runtime as it reaches a device: a folder that was copied, or a wheel in an empty environment."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", ROOT / "docs" / "guides" / "embed.md") if page.is_file()]


def test_the_folder_alone_is_enough(model: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "runtime", tmp_path / "device" / "runtime", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import runtime; print(runtime.__file__)"
    for command, code in (([script], 0), ([None, model, images / "a.png"], 0)):
        arguments = ["-c", script] if command[0] else ["-m", "runtime", *map(str, command[1:])]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "device",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        if command[0]:
            assert Path(done.stdout.strip()).is_relative_to(tmp_path)
        else:
            assert json.loads(done.stdout)["label"] == "red"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_python_in_the_pages_runs(
    page: Path, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= (2 if page.name == "embed.md" else 1)
    make_model("model.int8.onnx")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "photo.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"paths": ["photo.jpg", "broken.jpg"], "print": lambda *words: None}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


# Lines of code at most, without blank lines, comments and docstrings: of what every app loads, and of what is
# loaded with the first call that needs it.
MOST_LINES, MOST_LINES_ON_CALL = 2727, 761
ON_CALL = {
    f"images/{name}.py"  # the formats of the images, and messages for those that cannot be read
    for name in ("avif", "jpeg", "other_formats", "png", "tiff")
}
ON_CALL |= {"compile_cache.py", "plugins.py"}  # devices other than the CPU
CHECK = {"DeviceCheck", "check_model"}  # names that load the self-test
COMMAND_LINE = {"__main__.py", "command_line.py", "interrupts.py", "writing.py"}


def test_what_an_app_loads_is_limited(model: Path) -> None:
    """All that the public names need and nothing of the command line, whose modules are not loaded."""
    script = (
        "import sys, json\nimport numpy as np\nimport runtime\nfrom runtime import Classifier\n"
        f"for name in set(runtime.__all__) - {CHECK}: getattr(runtime, name)\n"
        f"assert Classifier({str(model)!r})(np.full((9, 9, 3), (255, 0, 0), np.uint8)).label == 'red'\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'runtime']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    home = ROOT / "runtime"
    lines = {str(path.relative_to(home)): lines_of_code(path) for path in home.rglob("*.py")}
    loaded = {str(Path(name).relative_to(home)) for name in json.loads(done.stdout)}
    core, on_call = (sum(lines[name] for name in names) for names in (loaded, ON_CALL))
    print(f"\n{core} lines in {sorted(loaded)}; {on_call} in {sorted(ON_CALL)}")
    others = {
        name
        for name in set(lines) - loaded
        if not name.startswith(("batch/", "command/", "self_test/", "update/", "monitor/"))
    }
    assert others == ON_CALL | COMMAND_LINE
    assert core <= MOST_LINES
    assert on_call <= MOST_LINES_ON_CALL


def lines_of_code(path: Path) -> int:
    """Lines that hold more than white space, a comment or a docstring."""
    text = path.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in tokens if t.type not in silent for n in range(t.start[0], t.end[0] + 1) if t.string}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)
