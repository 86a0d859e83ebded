"""Write files whole or not at all, make temporary folders, lock files, and explain errors of outputs."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from .errors import FAILED, InputError
from .interrupts import raise_on_signal

# Name of a temporary file: the start of its final name, digits that nobody can guess, and this project.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.vit-edge\.tmp", re.DOTALL)
_KEPT = 100  # bytes of that start; encrypted folders allow names of 143
_AT = 2**31 - 2  # byte that is locked on Windows, where nobody else can read a locked byte
_UNLOCKED = 60.0  # seconds; Windows renames no open file, so a file is without its lock for a moment

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

# Suffixes of files, so that a folder of this name is a mistake.
_OF_FILES = frozenset(
    {".onnx", ".json", ".jsonl", ".csv", ".tsv", ".html", ".txt", ".npy", ".npz", ".parquet", ".data", ".md"}
    | {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".png", ".jpg", ".jpeg", ".zip", ".tar", ".gz", ".py"}
    | {".xlsx", ".xls", ".ods", ".xml", ".htm", ".pdf", ".feather", ".arrow", ".h5", ".hdf5", ".pkl", ".db"}
    | {".sqlite", ".tfrecord", ".yaml", ".yml", ".bz2", ".xz", ".zst", ".7z", ".tgz"}
)
# Names that promise another format than lines of JSON or CSV.
OTHER_FORMATS = _OF_FILES - {".jsonl", ".csv", ".txt", ".data"}


class OutputError(InputError):
    """An output that cannot be begun, continued or written, and what to do about it."""


class DiskError(OutputError):
    """An output that was begun and cannot be finished, because the disk is full or fails."""

    exit_code = FAILED


class AtomicFile:
    """A new file that gets its name once it is complete, and is removed at the end of a `with` if it is not.

    Until then nobody can guess its name, and no link is followed. It is locked for as long as its process
    lives, so that the next `AtomicFile` in the folder finds and removes files that killed processes left.
    Where the disk has no locks nothing is removed.

    Args:
        place: its final path. A file there is replaced in one step.
        tidy: first remove from the folder the files that killed processes left.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, place: Path, *, tidy: bool = True) -> None:
        if tidy:
            remove_leftovers(place.parent)
        self._place = place
        self.path, descriptor = _create(place)
        self.file = os.fdopen(descriptor, "wb")

    def flush_to_disk(self) -> None:
        """Write all content to the disk, past the buffers of Python and of the system."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def commit(self, *, sync: bool = True) -> None:
        """Rename the file to its final path.

        Args:
            sync: first flush it to the disk, so that it is complete even after a power failure.
        """
        if sync:
            self.flush_to_disk()
        if os.name == "nt":
            self.file.close()
        else:
            self.file.flush()
        self.path.replace(self._place)
        self.file.close()
        if sync:
            sync_folder(self._place.parent)

    def discard(self) -> None:
        """Remove the file; after `commit` this does nothing."""
        with suppress(OSError):  # a full disk: the content is not wanted any more
            self.file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or unchanged at any moment; make its folder where there is none.

    Args:
        path: the file.
        data: its whole content.

    Raises:
        OutputError: when it cannot be written, with the reason.
    """
    with raise_on_signal(), explain_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(path) as new:
            new.file.write(data)
            new.commit()


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a private folder that is removed after the block, or by the next call if the process is killed.

    Args:
        parent: the folder to make it in; None for the system's folder for temporary files.

    Yields:
        The folder.

    Raises:
        OutputError: if the system has no such folder, or its disk is full; the message names TMPDIR.
    """
    try:
        where = Path(tempfile.gettempdir()) if parent is None else parent
    except FileNotFoundError as error:
        raise OutputError(
            "no folder for temporary files can be written to; set TMPDIR to one that can"
        ) from error
    try:
        lock = AtomicFile(where / "folder")
        folder = lock.path.with_suffix("")
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # Windows removes no file that is mapped: the next run does
                lock.file.close()
            else:
                lock.discard()
    except OSError as error:
        if parent is None and error.errno in _FULL:
            raise DiskError(
                f"{where}: the disk is full; free some space, or set TMPDIR to a folder on another disk"
            ) from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder the temporary files and folders of this user's processes that have ended.

    A file stays that is locked, or cannot be locked. Nothing is done where the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            found = [entry.name for entry in listing if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for name in found:
        with suppress(OSError):  # another process was quicker, or it may not be removed
            _remove_if_unlocked(folder / name)


def _remove_if_unlocked(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        return
    if os.name == "nt" and time.time() - status.st_mtime < _UNLOCKED:
        return
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        if not lock_file(descriptor) or not os.path.samestat(os.fstat(descriptor), path.lstat()):
            return
        shutil.rmtree(folder := path.with_suffix(""), ignore_errors=True)  # of which the file is the lock
        if os.name != "nt" and not folder.exists():
            path.unlink()
    finally:
        os.close(descriptor)
    if os.name == "nt" and not folder.exists():  # which removes no open file
        path.unlink()


def _create(place: Path) -> tuple[Path, int]:
    """Make a new, locked file beside a place, and return its path and descriptor."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = _temporary_name(place, secrets.token_hex(8))
        descriptor = os.open(path, flags, 0o666)
        try:
            with suppress(BlockingIOError, FileNotFoundError):
                lock_file(descriptor)
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return path, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # before it was locked, another process took it for a leftover


def _temporary_name(place: Path, digits: str) -> Path:
    start = os.fsencode(place.name)[:_KEPT].decode("utf-8", "ignore")
    return place.with_name(f".{start}.{digits}.vit-edge.tmp")


def lock_path(place: Path) -> Path:
    """Return the path of the lock file of an output, which `remove_leftovers` removes if it is left."""
    return _temporary_name(place, blake2b(os.fsencode(place.name), digest_size=8).hexdigest())


def lock_file(descriptor: int) -> bool:
    """Lock an open file until it is closed or its process ends; return False where the disk has no locks.

    Raises:
        BlockingIOError: if it is locked already.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a network disk without locks
        return False
    return True


def _lock_on_windows(descriptor: int) -> bool:
    try:
        import msvcrt
    except ImportError:
        return False
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _AT, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError as error:  # the byte is locked
        raise BlockingIOError(str(error)) from error
    except OSError:
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return True


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, past the buffers of the system; some systems cannot.

    Args:
        folder: the folder in which files were made, renamed or removed.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some network disks cannot
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Check, before long work, that files can be written to a folder.

    A folder is made in it and removed, since permissions are not enough (a read-only disk, root).

    Args:
        folder: the output folder; where it does not exist, the nearest folder above it that does is checked.

    Raises:
        OutputError: for a file of this path, a name with the suffix of a file, and a folder that cannot be
            written to.
    """
    refuse_file_name(folder)
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):  # noqa: PTH112 (Path.is_dir raises where it may not look)
        raise OutputError(f"{place}: expected a folder to write to, found a file; choose another --out")
    with raise_on_signal(), explain_output_errors(folder), temporary_folder(place):
        pass


def check_temporary_folder() -> None:
    """Check, before long work, that temporary files can be written.

    Raises:
        OutputError: if they cannot.
    """
    with raise_on_signal(), temporary_folder():
        pass


def refuse_file_name(folder: Path) -> None:
    """Refuse an output folder whose name has the suffix of a file, such as `model.onnx`.

    Args:
        folder: the output folder; one that exists is accepted whatever its name.

    Raises:
        OutputError: for such a name.
    """
    if folder.suffix.lower() in _OF_FILES and not os.path.lexists(folder):
        raise OutputError(
            f"{folder}: expected the name of a folder, found one that ends in {folder.suffix}, as files do; "
            "leave the suffix out"
        )


@contextmanager
def explain_output_errors(path: Path, *, begun: bool = False) -> Iterator[None]:
    """Raise an OutputError that names the output instead of each OSError in this block.

    Args:
        path: the output.
        begun: whether it was opened already, so that an error is never the user's mistake.

    Raises:
        DiskError: for a disk that is full or fails, and for any OSError if `begun`.
        OutputError: for any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(f"{path}: the disk is full; free some space") from error
        reason = error.strerror or str(error)
        if begun or error.errno in (errno.EFBIG, errno.EIO):
            raise DiskError(f"{path}: the disk does not take it ({reason}); choose another output") from error
        raise OutputError(f"{path}: it cannot be written ({reason}); choose another output") from error
