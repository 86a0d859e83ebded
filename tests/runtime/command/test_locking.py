"""One writer at a time: in processes and threads, after a kill, and on disks without locks."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from runtime.command import locking
from runtime.command.locking import LOCK_FILE, only_writer, only_writer_of
from runtime.writing import OutputError, lock_file

HOLD = """
import sys
from pathlib import Path
from runtime.command import locking
if sys.argv[2] == "file":
    take = locking._take
    locking._take = lambda folder, path, flags: None if path == folder else take(folder, path, flags)
with locking.only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, root: Path, how: str = "folder") -> subprocess.Popen[str]:
    """Start a process that writes to a folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def without_folder_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS and on Windows, where a folder itself has no lock."""
    take = locking._take
    monkeypatch.setattr(
        locking, "_take", lambda folder, path, flags: None if path == folder else take(folder, path, flags)
    )


@pytest.mark.parametrize("link", [False, True])
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, root: Path, link: bool) -> None:
    out = tmp_path / "deep" / "out"
    with hold(out, root) as process:
        (tmp_path / "link").symlink_to(tmp_path / "deep")
        with pytest.raises(OutputError, match="another process is writing to it"):  # noqa: SIM117
            with only_writer(tmp_path / "link" / "out" if link else out):
                pass
        process.kill()
    with only_writer(out):
        pass
    assert list(out.iterdir()) == []


def test_a_file_is_the_lock_where_folders_have_none(
    tmp_path: Path, root: Path, without_folder_locks: None
) -> None:
    with hold(tmp_path, root, "file") as process:
        with pytest.raises(OutputError, match="another process is writing to it"):  # noqa: SIM117
            with only_writer(tmp_path):
                pass
        process.kill()
    assert (tmp_path / LOCK_FILE).exists()  # of the process that was killed: it locks nobody out
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_same_thread_may_enter_again_and_another_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with only_writer(tmp_path):
                said.append("in")
        except OutputError as error:
            said.append(str(error))

    with only_writer(tmp_path), only_writer(tmp_path / ".." / tmp_path.name):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "another process is writing" in said[0]
    other()
    assert said[1] == "in"


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_disk_without_locks_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), only_writer(tmp_path), only_writer(tmp_path):
        (tmp_path / "file").touch()
    assert [record.getMessage() for record in caplog.records] == [
        f"note: {tmp_path}: its disk has no locks; start no second command that writes there"
    ]
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_windows_locks_a_byte_far_from_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its module: the place in the file stays, and a lock of others is told."""
    at: list[int] = []

    def locking_(descriptor: int, mode: int, count: int) -> None:
        if at:
            raise PermissionError(13, "Permission denied")
        at.append(os.lseek(descriptor, 0, os.SEEK_CUR))

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking_, LK_NBLCK=2))
    with (tmp_path / "file").open("wb") as file:
        file.write(b"text")
        file.flush()
        assert lock_file(file.fileno())
        assert at[0] > 2**30
        assert file.tell() == os.lseek(file.fileno(), 0, os.SEEK_CUR) == 4
        with pytest.raises(BlockingIOError):
            lock_file(file.fileno())


def test_a_place_where_nothing_can_be_made_is_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/proc`, and network disks whose server has lost the folder, say "not there" of a new file."""

    def refuse(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="No such file or directory"), only_writer(tmp_path):
        pytest.fail("must not get here")
    with pytest.raises(OutputError, match="No such file or directory"), only_writer_of(tmp_path / "e.npy"):
        pytest.fail("must not get here")
