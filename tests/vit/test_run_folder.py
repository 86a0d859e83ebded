"""Which runs are begun, resumed, or refused."""

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
        " no state of a run", " no state of a run", " resuming the run",
    ]  # fmt: skip
    with pytest.raises(OutputError, match="found both"):
        opened(tmp_path, "auto", said, overwrite=True)


@pytest.mark.parametrize("state", [True, False])
def test_only_a_run_with_a_state_is_offered_to_go_on(
    state: bool, tmp_path: Path, tiny_model: Any, tiny_preprocess: Any
) -> None:
    """An imported model has none, nor has a run that was killed in its first epoch."""
    save_checkpoint(tmp_path, model=tiny_model, preprocess=tiny_preprocess, labels="abc", finished=False)
    if state:
        (tmp_path / STATE).touch()
    with pytest.raises(OutputError, match=r"model\.safetensors.*replace it by --overwrite") as found:
        opened(tmp_path, None, [])
    assert ("--resume" in str(found.value)) is state
