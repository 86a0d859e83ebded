"""The page that shows the public interface: all of it is there, and every line of it runs."""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from PIL import Image

import runtime

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "runtime.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The code of the page, block by block."""
    if not PAGE.is_file():
        pytest.skip("needs docs/reference/runtime.md, which a folder that was copied alone lacks")
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def words(blocks: list[str]) -> set[str]:
    return set(re.findall(r"\w+", "".join(blocks)))


def test_every_public_name_is_shown(blocks: list[str]) -> None:
    assert set(runtime.__all__) <= words(blocks)


@pytest.mark.parametrize("function", [runtime.Classifier, runtime.Classifier.stream])
def test_every_argument_and_method_is_shown(blocks: list[str], function: Callable[..., Any]) -> None:
    arguments = {
        name for name, x in inspect.signature(function).parameters.items() if x.kind is x.KEYWORD_ONLY
    }
    methods = {name for name in vars(runtime.Classifier) if not name.startswith("_")}
    assert arguments | methods | {"info"} <= words(blocks)


def test_it_fits_on_a_page(blocks: list[str]) -> None:
    assert sum(1 for line in "".join(blocks).splitlines() if line.strip()) <= 43


def test_every_line_runs(
    blocks: list[str],
    make_embedding_model: Any,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_embedding_model("model.int8.onnx")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "photo.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    images.rename(tmp_path / "holiday")
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for number, block in enumerate(blocks):
        code = compile(block, f"block {number}", "exec")
        ran = lines_run(code, {"print": lambda *words: said.append(" ".join(map(str, words)))})
        assert ran == lines_of(code)
    assert "no such model file" in said[0]
    assert "no label: broken.jpg: it is empty" in said[1]
    assert [line.split()[-1] for line in said[2:5]] == ["red", "green", "blue"]
    assert len(said) == 9


def lines_of(code: CodeType) -> set[int]:
    return {line for _, line in dis.findlinestarts(code) if line}


def lines_run(code: CodeType, names: dict[str, Any]) -> set[int]:
    """The numbers of the lines that ran, of those at the top level."""
    found: set[int] = set()

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line":
            found.add(frame.f_lineno)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        exec(code, names)
    finally:
        sys.settrace(before)
    return found
