"""Temporary files: new, never through a link, and gone when their process is, however it ended."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.errors import FAILED, WRONG_USE
from runtime.writing import (
    AtomicFile,
    DiskError,
    OutputError,
    check_folder,
    check_temporary_folder,
    explain_output_errors,
    temporary_folder,
    write_atomically,
)

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs links and signals")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def another_process(work: str, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run work that has begun to write to `place` and waits; it is killed at the end."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom runtime.writing import *\nplace = Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script + work, place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


FILE = (
    "new = AtomicFile(place); new.file.write(b'half'); new.file.flush(); print(flush=True); sys.stdin.read()"
)
FOLDER = """
with temporary_folder(place.parent) as folder:
    (folder / "deep").mkdir(); (folder / "deep" / "weights").write_bytes(b"gigabytes")
    print(flush=True); sys.stdin.read()
"""


@POSIX
@pytest.mark.parametrize("work", [FILE, FOLDER])
def test_what_a_killed_process_left_is_removed_by_the_next(work: str, tmp_path: Path) -> None:
    with another_process(work, tmp_path / "out") as process:
        left = names(tmp_path)
        assert left
        write_atomically(tmp_path / "other", b"")  # while it lives, whatever is written beside it
        assert names(tmp_path) == sorted([*left, "other"])
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == sorted([*left, "other"])
    write_atomically(tmp_path / "new", b"whole")
    assert names(tmp_path) == ["new", "other"]


@POSIX
def test_temporary_files_of_other_programs_stay(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    token = "0123456789abcdef"
    mine = [".out.part", ".out.123.tmp", f".out.{token}.tmp", f"out.{token}.vit-edge.tmp"]
    for name in mine:
        (tmp_path / name).touch()
    (tmp_path / f".link.{token}.vit-edge.tmp").symlink_to(victim)
    os.mkfifo(tmp_path / f".pipe.{token}.vit-edge.tmp")
    before = names(tmp_path)
    write_atomically(tmp_path / "new", b"")
    assert names(tmp_path) == sorted([*before, "new"])
    assert victim.read_text() == "precious"


@POSIX
def test_the_folder_of_a_left_file_may_be_a_link(tmp_path: Path) -> None:
    """A folder beside a left file is removed with it, and nothing that a link in its place leads to."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    left = tmp_path / ".x.0123456789abcdef.vit-edge.tmp"
    left.touch()
    left.with_suffix("").symlink_to(tmp_path / "precious")
    write_atomically(tmp_path / "new", b"")
    assert (tmp_path / "precious" / "data").exists()


@POSIX
def test_a_link_under_the_name_of_a_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, target = tmp_path / "victim", tmp_path / "o.run"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "ab" * size)  # as if it could be guessed
    aside = tmp_path / f".o.run.{'ab' * 8}.vit-edge.tmp"
    aside.symlink_to(victim)
    with pytest.raises(OutputError, match="File exists"):
        write_atomically(target, b"new")
    aside.unlink()
    aside.symlink_to(tmp_path / "nothing")  # a link that leads nowhere would be filled
    with pytest.raises(OutputError, match="File exists"):
        write_atomically(target, b"new")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_without_locks_files_are_written_and_nothing_is_taken_for_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, module, None)
    left = tmp_path / ".x.0123456789abcdef.vit-edge.tmp"
    left.touch()
    write_atomically(tmp_path / "new", b"whole")
    with temporary_folder(tmp_path) as folder:
        (folder / "file").touch()
    assert names(tmp_path) == [left.name, "new"]


@POSIX
def test_a_disk_that_refuses_locks_is_as_a_system_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = tmp_path / ".x.0123456789abcdef.vit-edge.tmp"
    left.touch()
    write_atomically(tmp_path / "new", b"whole")
    assert names(tmp_path) == [left.name, "new"]


def test_names_of_any_length_and_the_usual_rights(tmp_path: Path) -> None:
    for name in ("ä" * 127, "x" * 255, "\udcff.npy"):
        if os.name == "nt" and len(os.fsencode(name)) != 255:
            continue
        place = tmp_path / name
        write_atomically(place, b"whole")
        assert place.read_bytes() == b"whole"
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("old")

    def write() -> None:
        with AtomicFile(tmp_path / "new") as aside:
            aside.file.write(b"half")
            raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"):
        write()
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new").read_text() == "old"


def test_no_place_for_temporary_files_names_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(OutputError, match="set TMPDIR"):
        check_temporary_folder()


@pytest.mark.parametrize("number", [errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)])
def test_a_full_disk_of_temporary_files_names_the_way(number: int) -> None:
    def fill() -> None:
        with temporary_folder():
            raise OSError(number, "No space left on device")

    with pytest.raises(DiskError, match="set TMPDIR"):
        fill()


@pytest.mark.parametrize(
    ("number", "begun", "code"),
    [
        (errno.ENOSPC, False, FAILED),
        (errno.EIO, False, FAILED),
        (errno.EFBIG, False, FAILED),
        (errno.EACCES, False, WRONG_USE),
        (errno.EROFS, False, WRONG_USE),
        (errno.EACCES, True, FAILED),
    ],
)
def test_the_exit_code_tells_a_disk_that_gave_out_from_wrong_use(
    number: int, begun: bool, code: int, tmp_path: Path
) -> None:
    with pytest.raises(OutputError) as caught, explain_output_errors(tmp_path, begun=begun):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code


@pytest.mark.parametrize("name", ["report.json", "Model.ONNX", "labels.csv", "plots.html", "e.npy"])
def test_a_folder_is_not_made_under_the_name_of_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected the name of a folder"):
        check_folder(tmp_path / name)
    (tmp_path / name).mkdir()
    check_folder(tmp_path / name)  # the user has made it
    check_folder(tmp_path / "flowers-1.5")
    assert names(tmp_path) == [name]
