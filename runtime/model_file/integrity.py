"""Integrity of a model: the SHA-256 at the end of its .onnx file, and a second file with its weights.

The last entry of `ModelProto.metadata_props` has the same length in every file, and its value is the SHA-256
of all bytes before the entry. It finds damage, not malice. One pass over the file gives this digest and that
of the whole file.

Weights too large for an .onnx file are in a second file. The .onnx file states its name, size and SHA-256, so
that the SHA-256 of the .onnx file covers both. The name is untrusted: it must be of a file in the folder of
the .onnx file. That file may be a link, as caches store models, to a regular file anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from io import BufferedReader
from mmap import mmap
from pathlib import Path

from ..strict_json import parse_json, read_field
from .metadata import ArtifactError
from .onnx_file import OnnxSummary

DIGEST_KEY = "vit_edge_sha256"
_HEX = 64  # digits of a SHA-256
_KEY = b"\x0a" + bytes([len(DIGEST_KEY)]) + DIGEST_KEY.encode()  # field 1 of an entry; its value is field 2
_START = b"\x72" + bytes([len(_KEY) + 2 + _HEX]) + _KEY + b"\x12" + bytes([_HEX])  # the entries are field 14
DIGEST_BYTES = len(_START) + _HEX
_CHUNK = 2**20  # bytes
DATA_KEY = "vit_edge_data"  # of the entry in ModelProto.metadata_props
DATA_SUFFIX = ".data"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
# What Windows takes for a device in any folder, with any suffix.
_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$")) | {
    f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"
}


def digest_entry(sha256: str) -> bytes:
    """Return the entry with the digest, the last bytes of a model file.

    Args:
        sha256: of all bytes before them, 64 hexadecimal digits.
    """
    return _START + sha256.encode()


@dataclass(frozen=True)
class Digests:
    """Digests of a model file, from one pass over it."""

    sha256: str  # of the whole file
    is_intact: bool  # it ends with the entry of the digest of all other bytes


def hash_bytes(data: bytes | mmap) -> Digests:
    """Return the digests of a model file that is in memory."""
    whole = memoryview(data)
    end = max(0, len(whole) - DIGEST_BYTES)
    return _finish(hashlib.sha256(whole[:end]), bytes(whole[end:]))


def start_hashing(source: Path | bytes) -> Future[Digests]:
    """Hash a model file in a thread, while ONNX Runtime loads it: both release Python's lock.

    The file is read once more for this: its bytes would take memory while ONNX Runtime loads them.
    """
    future: Future[Digests] = Future()

    def hash_source() -> None:
        try:
            future.set_result(hash_bytes(source) if isinstance(source, bytes) else _hash_file(source))
        except BaseException as error:  # raised again where the digests are asked for
            future.set_exception(error)

    try:  # not in a pool, which takes no work once the main thread has ended
        threading.Thread(target=hash_source, name="runtime-sha256", daemon=True).start()
    except RuntimeError:  # no more threads: the process ends, or is at its limit
        hash_source()
    return future


def _hash_file(path: Path) -> Digests:
    with open_regular_file(path) as file:
        found = _hash_next(file, os.fstat(file.fileno()).st_size - DIGEST_BYTES)
        return _finish(found, file.read(DIGEST_BYTES))


def _hash_next(file: BufferedReader, length: int) -> hashlib._Hash:
    """Hash the next `length` bytes of a file, or all up to its end."""
    found = hashlib.sha256()
    # Not from the C library, which would keep more of what ONNX Runtime frees: 60 MiB more at the peak.
    chunk = memoryview(mmap(-1, _CHUNK))
    while length > 0 and (count := file.readinto(chunk[:length])):
        found.update(chunk[:count])
        length -= count
    return found


def _finish(found: hashlib._Hash, end: bytes) -> Digests:
    """Return the digests of a file, given the hash of all but its last bytes, and these."""
    is_intact = end == digest_entry(found.hexdigest())
    found.update(end)
    return Digests(found.hexdigest(), is_intact)


# --- The second file ---


def check_data(model: OnnxSummary, source: Path | bytes) -> tuple[Path, tuple[int, ...]]:
    """Check the second file of a model, which holds its weights, and return it with its stamp.

    Raises:
        ArtifactError: when it is missing, has another size or SHA-256, or must not be opened. The message
            does not name the SHA-256 that was found: it may be of any file of the user.
    """
    name, size, sha256 = read_data_entry(model)
    if isinstance(source, bytes):
        raise ArtifactError(
            f"its weights are in another file, {name}: give the path of the .onnx file beside it"
        )
    path = source.parent / name
    try:
        with open_regular_file(path) as file:
            stamp = read_file_stamp(os.fstat(file.fileno()))
            if stamp[2] != size:
                raise ArtifactError(
                    f"its weights in {name} have {stamp[2]:,} bytes, expected {size:,}; copy both files again"
                )
            found = _hash_next(file, size).hexdigest()
    except FileNotFoundError:
        raise ArtifactError(
            f"its weights lie in {name}, {size:,} bytes, which is missing beside it; copy both files"
        ) from None
    except OSError as error:
        raise ArtifactError(f"its weights in {name} cannot be read: {error.strerror or error}") from error
    if found != sha256:
        raise ArtifactError(f"the SHA-256 of {name} is not the expected one, {sha256}; copy both files again")
    return path, stamp


def read_data_entry(model: OnnxSummary) -> tuple[str, int, str]:
    """Return name, bytes and SHA-256 of the second file, as the first one states them."""
    text = model.metadata.get(DATA_KEY)
    if text is None:
        raise ArtifactError("its weights are in another file of unknown SHA-256; export it again")
    try:
        entry = parse_json(text)
        name = read_field(entry, "file", str, where=DATA_KEY)
        size = read_field(entry, "bytes", int, where=DATA_KEY)
        sha256 = read_field(entry, "sha256", str, where=DATA_KEY)
    except ValueError as error:
        raise ArtifactError(f"its entry {DATA_KEY} cannot be used ({error}); export it again") from None
    if model.data_files != {name} or not is_beside(name):
        found = ", ".join(sorted(model.data_files)) or "none"
        raise ArtifactError(
            f"its weights are in {found}, expected the one file beside it of {DATA_KEY}; export it again"
        )
    return name, size, sha256


def is_beside(name: str) -> bool:
    """Return whether a name in a model is, on every system, that of a file in the model's folder.

    It holds no separator, drive or stream (`:`), control character, or name of a device, and it does not end
    with a dot or a space, which Windows drops.

    Args:
        name: as the model states it.
    """
    stem = name.partition(".")[0].rstrip(" ").upper()
    plain = not any(character in "/\\:" or character < " " for character in name)
    return plain and name == name.rstrip(". ") != "" and stem not in _DEVICES


def open_regular_file(path: Path, *, links: bool = True) -> BufferedReader:
    """Open a regular file, or a link to one, without waiting for a pipe or opening a device.

    Args:
        path: the file.
        links: False refuses a link.

    Returns:
        The file, opened for reading bytes.

    Raises:
        OSError: when it is not a regular file, or cannot be opened.
    """
    try:
        _expect_regular(path.stat(follow_symlinks=links).st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "a link to a file that is not there") from None
        raise
    # It may have been replaced by now.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    flags |= 0 if links else getattr(os, "O_NOFOLLOW", 0)
    file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115
    try:
        _expect_regular(os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _expect_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"expected a file, found {_KINDS.get(stat.S_IFMT(mode), 'a device')}")


def read_file_stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers of which one changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
