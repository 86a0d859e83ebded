"""Files appear whole or not at all, and the older ones stay until then."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.files import staged
from runtime.writing import OutputError


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_appear_at_the_end(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "out") as aside:
        (aside / "a").write_text("1")
        (aside / "b").write_text("2")
        assert not (tmp_path / "deep" / "out").exists()
    assert tree(tmp_path) == {"deep/out/a": "1", "deep/out/b": "2"}  # and nothing is left aside


@pytest.mark.parametrize("error", [ValueError, OSError(28, "No space left"), KeyboardInterrupt])
def test_an_interruption_leaves_the_old_files(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def write() -> None:
        with staged(out) as aside:
            (aside / "a").write_text("new, cut o")
            raise error

    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected, match="the disk is full" if isinstance(error, OSError) else None):
        write()
    assert tree(tmp_path) == {"out/a": "old"}


def test_a_newer_file_takes_the_older_ones_place_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "mine").write_text("kept")
    with staged(out) as aside:
        (aside / "a").write_text("new")
    assert tree(tmp_path) == {"out/a": "new", "out/mine": "kept"}


def test_readers_of_the_old_file_keep_it(tmp_path: Path) -> None:
    """The file is replaced, not written over: who has it open, or mapped, reads on."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with (out / "a").open() as reader:
        with staged(out) as aside:
            (aside / "a").write_text("new")
        assert reader.read() == "old"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(OutputError, match="expected a folder to write to, found a file"),
        staged(tmp_path / "out"),
    ):
        pytest.fail("must not get here")
    assert tree(tmp_path) == {"out": "a file"}
