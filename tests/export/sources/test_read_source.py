"""The embedded example as a source: an interrupted training is never taken for a finished one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.sources.read_source import ExampleReader, complete_example, describe_unfinished
from runtime.errors import Interrupted
from vit.checkpoint import load_checkpoint
from vit.document import FILE_NAME
from vit.run_folder import STATE
from vit.training import examples


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits example with three epochs in the place of forty."""
    whole = examples.EXAMPLES["digits"]
    recipe = replace(whole.recipe, epochs=3)
    monkeypatch.setitem(examples.EXAMPLES, "digits", replace(whole, recipe=recipe))  # type: ignore[arg-type]


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Train until `after` epochs have closed, then stop as Ctrl-C does."""
    from vit.training import loop

    close = loop.Loop._close_epoch

    def stopping(self: loop.Loop) -> object:
        if self.progress.epoch == after:
            raise Interrupted
        return close(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_close_epoch", stopping)
        with pytest.raises(Interrupted):
            complete_example(folder)


@pytest.mark.usefixtures("short")
def test_an_interrupted_example_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"
    interrupt(folder, monkeypatch, after=1)
    assert not load_checkpoint(folder).finished
    assert (folder / STATE).is_file()
    assert ExampleReader(folder).read_facts().notes == (
        f"{folder}: the training was interrupted; it resumes",
    )
    complete_example(folder)
    found = load_checkpoint(folder)
    assert found.finished
    assert len(found.history) == 3
    straight = load_checkpoint(complete_example(tmp_path / "straight"))
    assert found.digest == straight.digest
    assert complete_example(folder) == folder
    assert not ExampleReader(folder).read_facts().notes


@pytest.mark.usefixtures("short")
def test_without_its_state_an_unfinished_example_is_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"
    interrupt(folder, monkeypatch, after=1)
    (folder / STATE).unlink()
    complete_example(folder)
    assert load_checkpoint(folder).finished


@pytest.mark.usefixtures("short")
def test_the_export_of_an_unfinished_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.__main__ import main

    folder = tmp_path / "digits"
    interrupt(folder, monkeypatch, after=2)
    shutil.move(folder / FILE_NAME, tmp_path / "half.safetensors")
    half = tmp_path / "half.safetensors"
    assert (
        main(
            [str(half), "--calibration", "digits", "--evaluation-samples", "20", "--out", str(tmp_path / "o")]
        )
        == 0
    )
    assert "the training is not finished (epoch 2 of 3)" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "report.json").read_text())


def test_how_far_an_unfinished_run_has_come() -> None:
    assert "epoch 1 of ?" in describe_unfinished([{}], {})
