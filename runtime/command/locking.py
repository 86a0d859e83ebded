"""One writer at a time for a file or a folder, by locks of the system, which end with their process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..writing import OutputError, explained_output, lock

LOCK_FILE = ".vit-edge.lock"  # where a folder itself cannot be locked: Windows, NFS

_log = logging.getLogger(__name__)
_held: dict[str, int] = {}  # folders that this process has locked, and the thread that did


def say_no_locks(path: Path) -> None:
    """Say that a second writer would not be noticed."""
    _log.warning("note: %s: its disk has no locks; start no second command that writes there", path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep every other process and thread from writing to a folder, which is made if need be.

    It may be entered again by the thread that is in it. A folder that was made and stays empty is removed.

    Raises:
        OutputError: if another one is writing to it, or if it cannot be made.
    """
    place, me = os.path.realpath(folder), threading.get_ident()
    if _held.get(place) == me:
        yield
        return
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    descriptor, file = _lock_folder(folder)
    _held[place] = me
    try:
        yield
    finally:
        del _held[place]
        # Before the lock ends, so that nobody locks what is about to vanish.
        if file is not None:
            with suppress(OSError):  # Windows removes no open file; the next writer does
                file.unlink()
        for each in made:
            with suppress(OSError):  # not empty
                each.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _lock_folder(folder: Path) -> tuple[int | None, Path | None]:
    """Return the descriptor that holds the lock and the file made for it, each where there is one."""
    file = folder / LOCK_FILE
    with explained_output(folder):
        try:
            if os.name != "nt" and (descriptor := _take(folder, folder, os.O_RDONLY)) is not None:
                return descriptor, None
            descriptor = _take(folder, file, os.O_RDWR | os.O_CREAT)
        except BlockingIOError:
            raise OutputError(
                f"{folder}: another process is writing to it; wait for its end, stop it, or choose another "
                "--out"
            ) from None
    if descriptor is None:
        say_no_locks(folder)
    return descriptor, file


def _take(folder: Path, path: Path, flags: int) -> int | None:
    """Open and lock the file or folder at `path`, or return None where there are no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        except FileNotFoundError:  # the folder was removed by the process that had it
            continue
        try:
            if not lock(descriptor):
                os.close(descriptor)
                return None
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116 (as os.fstat)
                return descriptor
        except FileNotFoundError:  # removed after it was opened
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
