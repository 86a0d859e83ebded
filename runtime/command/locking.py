"""One writer at a time for a file or a folder, by locks of the system, which end with their process."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..writing import OutputError, explain_output_errors, lock_file, lock_path

LOCK_FILE = ".vit-edge.lock"  # where a folder itself cannot be locked: Windows, NFS

_log = logging.getLogger(__name__)
_NEW = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_TRIES = 5  # a process that removes the remains of killed ones holds a lock for a moment
_held: dict[str, int] = {}  # folders that this process has locked, and the thread that did


def warn_no_locks(path: Path) -> None:
    """Warn that a second writer to this file or folder would not be noticed."""
    _log.warning("note: %s: its disk has no locks; start no second command that writes there", path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep every other process and thread from writing to a folder.

    It may be entered again by the thread that is in it. A folder that was made and stays empty is removed.

    Args:
        folder: made if it is missing.

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
        # Before the lock ends, so that no process locks a file that is about to be removed.
        if file is not None:
            with suppress(OSError):  # Windows removes no open file; the next writer does
                file.unlink()
        for each in made:
            with suppress(OSError):  # not empty
                each.rmdir()
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def only_writer_of(place: Path) -> Iterator[None]:
    """Keep every other process from writing a file that gets its name `place` when it is whole."""
    file = lock_path(place)
    with explain_output_errors(place):
        for _ in range(_TRIES):
            with suppress(BlockingIOError):
                descriptor = _take(place.parent, file, _NEW)
                break
            time.sleep(0.02)
        else:
            raise busy_output_error(place)
    if descriptor is None:
        warn_no_locks(place)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; the next writer does
            file.unlink()
        if descriptor is not None:
            os.close(descriptor)


def refuse_busy_output(place: Path) -> None:
    """Refuse to replace a file, which need not exist, that another process has open for its lines."""
    try:
        descriptor = os.open(place, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # it is missing, or may be replaced but not opened
        return
    try:
        lock_file(descriptor)
    except BlockingIOError:
        raise busy_output_error(place) from None
    finally:
        os.close(descriptor)


def busy_output_error(place: Path) -> OutputError:
    """Return the error of a file that another run is writing."""
    return OutputError(f"{place}: another run is writing it; wait for its end, or stop it")


def _lock_folder(folder: Path) -> tuple[int | None, Path | None]:
    """Return the descriptor that holds the lock and the file made for it, each None where there is none."""
    file = folder / LOCK_FILE
    with explain_output_errors(folder):
        try:
            if os.name != "nt" and (descriptor := _take(folder, folder, os.O_RDONLY)) is not None:
                return descriptor, None
            descriptor = _take(folder, file, _NEW)
        except BlockingIOError:
            raise OutputError(
                f"{folder}: another process is writing to it; wait for its end, stop it, or choose another "
                "folder"
            ) from None
    if descriptor is None:
        warn_no_locks(folder)
    return descriptor, file


def _take(folder: Path, path: Path, flags: int) -> int | None:
    """Open and lock the file or folder at `path`, or return None where there are no locks."""
    for left in reversed(range(100)):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        except FileNotFoundError:  # the folder was removed by the process that had it
            if left:
                continue
            raise  # as in /proc, where nothing can be made
        try:
            if not lock_file(descriptor):
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
    raise BlockingIOError  # other processes take and remove it again and again
