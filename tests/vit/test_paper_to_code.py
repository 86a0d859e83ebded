"""The code of the page runs, block by block, as a reader would type it."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "paper-to-code.md"


def test_every_block_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"paper-to-code.md, block {number}", "exec"), names)
    assert "GMACs per image" in capsys.readouterr().out
