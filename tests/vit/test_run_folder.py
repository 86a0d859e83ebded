"""Which runs are begun, gone on with, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.writing import OutputError
from vit.checkpoint import save_checkpoint
from vit.run_folder import STATE, open_run_folder


def opened(out: Path, resume: str | None, said: list[str], *, overwrite: bool = False) -> bool:
    return open_run_folder(out, resume=resume, overwrite=overwrite, report=said.append)


@pytest.mark.parametrize("finished", [True, False])
def test_auto_begins_goes_on_and_loses_nothing(
    finished: bool, tmp_path: Path, tiny_model: Any, tiny_preprocess: Any
) -> None:
    said: list[str] = []
    assert opened(tmp_path, "auto", said) is False
    save_checkpoint(tmp_path, model=tiny_model, preprocess=tiny_preprocess, labels="abc", finished=finished)
    if finished:
        with pytest.raises(OutputError, match="a run is there already"):
            opened(tmp_path, "auto", said)
    else:  # what an interrupted first epoch leaves
        assert opened(tmp_path, "auto", said) is False
    (tmp_path / STATE).touch()
    assert opened(tmp_path, "auto", said) is True
    assert [line.split(":")[1].split(" in ")[0] for line in said] == [
        " no state of a run", " no state of a run", " going on with the run",
    ]  # fmt: skip
    with pytest.raises(OutputError, match="found both"):
        opened(tmp_path, "auto", said, overwrite=True)
