"""Files written aside and then renamed, temporary folders, and what goes wrong with an output in words."""

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
from types import TracebackType

from .errors import FAILED, InputError
from .interrupts import careful

# A temporary file: the start of the name it will get, what nobody can guess, and whose file it is.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.vit-edge\.tmp", re.DOTALL)
_KEPT = 100  # bytes of that start; encrypted folders allow names of 143
_AT = 2**31 - 2  # byte that is locked on Windows, which keeps others from reading what is locked
_SETTLING = 60.0  # seconds; Windows renames no open file, so it has a moment without its lock

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
    """An output that was begun and that the disk does not take to its end: it is full, or it fails."""

    exit_code = FAILED


class Aside:
    """A new file that gets its name when it is whole, and is removed at the end of a `with` if it is not.

    Nobody can guess its name, and no link is followed. It is locked for as long as its process lives, so that
    the next `Aside` in the folder can tell and remove what a killed process has left. Where the disk has no
    locks nothing is removed.

    Args:
        place: the name it will get. A file there is replaced in one step.
        tidy: first remove from the folder what killed processes have left.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, place: Path, *, tidy: bool = True) -> None:
        if tidy:
            remove_left_behind(place.parent)
        self._place = place
        self.path, descriptor = _create(place)
        self.file = os.fdopen(descriptor, "wb")

    def settle(self) -> None:
        """Flush the file to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def commit(self, *, sync: bool = True) -> None:
        """Rename the file to its place.

        Args:
            sync: first flush it to the disk, so that not even a power cut leaves a half of it.
        """
        if sync:
            self.settle()
        if os.name == "nt":
            self.file.close()
        else:
            self.file.flush()
        self.path.replace(self._place)
        self.file.close()
        if sync:
            sync_folder(self._place.parent)

    def discard(self) -> None:
        """Remove the file; nothing after `commit`."""
        with suppress(OSError):  # a full disk: what is left in memory is not wanted any more
            self.file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Aside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to the disk, and rename it into place, so that it is whole or as it was.

    Raises:
        OutputError: when it cannot be written, with the reason.
    """
    with careful(), explained_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with Aside(path) as aside:
            aside.file.write(data)
            aside.commit()


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a private folder that is removed after the block, or by the next one if the process is killed.

    Args:
        parent: the folder to make it in; None for the place that the system has for such folders.

    Raises:
        OutputError: if the system has no such place, or its disk is full; TMPDIR names another one.
    """
    where = _temporary_place() if parent is None else parent
    try:
        yield from _temporary_folder(where)
    except OSError as error:
        if parent is None and error.errno in _FULL:
            raise DiskError(
                f"{where}: the disk is full; free some space, or set TMPDIR to a folder on another disk"
            ) from error
        raise


def _temporary_folder(where: Path) -> Iterator[Path]:
    lock_of = Aside(where / "folder")
    folder = _folder_of(lock_of.path)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():  # Windows removes no file that is mapped: the next run does
            lock_of.file.close()
        else:
            lock_of.discard()


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise OutputError(
            "no folder for temporary files can be written to; set TMPDIR to one that can"
        ) from error


def _folder_of(path: Path) -> Path:
    """Return the temporary folder that lives as long as the lock of a temporary file."""
    return path.with_suffix("")


def remove_left_behind(folder: Path) -> None:
    """Remove from a folder the temporary files and folders of this user's processes that have ended.

    A file that is locked, or whose lock cannot be asked for, stays.
    """
    try:
        with os.scandir(folder) as listing:
            found = [entry.name for entry in listing if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return  # the folder is not there yet, or may not be listed
    for name in found:
        with suppress(OSError):  # another process was quicker, or it may not be removed
            _remove_if_left(folder / name)


def _remove_if_left(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        return
    if os.name == "nt" and time.time() - status.st_mtime < _SETTLING:
        return
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        if not lock(descriptor) or not os.path.samestat(os.fstat(descriptor), path.lstat()):
            return
        shutil.rmtree(_folder_of(path), ignore_errors=True)
        if os.name != "nt" and not _folder_of(path).exists():
            path.unlink()
    finally:
        os.close(descriptor)
    if os.name == "nt" and not _folder_of(path).exists():  # which removes no open file
        path.unlink()


def _create(place: Path) -> tuple[Path, int]:
    """Make a new, locked file beside a place, and return its path and descriptor."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        path = _temporary_name(place, secrets.token_hex(8))
        descriptor = os.open(path, flags, 0o666)
        try:
            with suppress(BlockingIOError, FileNotFoundError):
                lock(descriptor)
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    return path, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # in the moment before it was locked, another process took it for a dead one's


def _temporary_name(place: Path, digits: str) -> Path:
    start = os.fsencode(place.name)[:_KEPT].decode("utf-8", "ignore")
    return place.with_name(f".{start}.{digits}.vit-edge.tmp")


def lock_place(place: Path) -> Path:
    """Return the file beside a place that is locked while it is written; if it is left, it is removed."""
    return _temporary_name(place, blake2b(os.fsencode(place.name), digest_size=8).hexdigest())


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed or its process ends; return False where there are no locks.

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
    except PermissionError as error:  # what Windows says of a byte that is locked
        raise BlockingIOError(str(error)) from error
    except OSError:
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return True


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some network disks cannot
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Find out, before long work, whether files can be written to a folder that may not be there yet.

    A folder is made and removed there, since permissions alone do not tell (a read-only disk, root).

    Raises:
        OutputError: for a file in its place, for a name that promises a file, and for a place that cannot be
            written to.
    """
    refuse_name_of_a_file(folder)
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):  # noqa: PTH112 (Path.is_dir raises where it may not look)
        raise OutputError(f"{place}: expected a folder to write to, found a file; choose another --out")
    with careful(), explained_output(folder), temporary_folder(place):
        pass


def check_temporary_folder() -> None:
    """Find out, before long work, whether there is a place for temporary files.

    Raises:
        OutputError: if there is none.
    """
    with careful(), temporary_folder():
        pass


def refuse_name_of_a_file(folder: Path) -> None:
    """Refuse to make a folder whose name promises a file.

    Raises:
        OutputError: for `model.onnx`, which would be a folder of this name.
    """
    if folder.suffix.lower() in _OF_FILES and not os.path.lexists(folder):
        raise OutputError(
            f"{folder}: expected the name of a folder, found one that ends in {folder.suffix}, as files do; "
            "leave the suffix out"
        )


@contextmanager
def explained_output(path: Path, *, begun: bool = False) -> Iterator[None]:
    """Turn what the system says about an output into an OutputError that names it.

    Args:
        path: the output.
        begun: whether it was opened already, so that whatever goes wrong is no wrong use.

    Raises:
        DiskError: in the place of an OSError about a disk that is full or fails, and of any with `begun`.
        OutputError: in the place of any other OSError.
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
