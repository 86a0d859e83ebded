"""The SHA-256 at the end of a model file: it finds damage, and not malice.

The last entry of `ModelProto.metadata_props` has the same length in every file, and its value is the SHA-256
of all bytes before the entry. One pass over the file gives this digest and that of the whole file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from .data_file import open_regular

DIGEST_KEY = "vit_edge_sha256"
_HEX = 64  # digits of a SHA-256
_KEY = b"\x0a" + bytes([len(DIGEST_KEY)]) + DIGEST_KEY.encode()  # field 1 of an entry; its value is field 2
_START = b"\x72" + bytes([len(_KEY) + 2 + _HEX]) + _KEY + b"\x12" + bytes([_HEX])  # the entries are field 14
DIGEST_BYTES = len(_START) + _HEX
_CHUNK = 2**20  # bytes


def digest_entry(sha256: str) -> bytes:
    """Return the bytes that a model file ends with.

    Args:
        sha256: of all bytes before them, 64 hexadecimal digits.
    """
    return _START + sha256.encode()


@dataclass(frozen=True)
class Digests:
    """The digests of a model file, found in one pass over it."""

    sha256: str  # of the whole file
    is_intact: bool  # it ends with the entry of the digest of all other bytes


def digests_of(data: bytes | mmap) -> Digests:
    """Hash a model file that is in memory."""
    whole = memoryview(data)
    end = max(0, len(whole) - DIGEST_BYTES)
    return _ended(hashlib.sha256(whole[:end]), bytes(whole[end:]))


def start_digests(source: Path | bytes) -> Future[Digests]:
    """Hash a model file in a thread, beside whatever loads it: both let other threads of Python run.

    It is read once more for this: to hold its bytes would cost their size while ONNX Runtime loads them.
    """
    future: Future[Digests] = Future()

    def hash_it() -> None:
        try:
            future.set_result(digests_of(source) if isinstance(source, bytes) else _in_file(source))
        except BaseException as error:  # raised again where the digests are asked for
            future.set_exception(error)

    try:  # not in a pool, which takes no work once the main thread has ended
        threading.Thread(target=hash_it, name="runtime-sha256", daemon=True).start()
    except RuntimeError:  # no more threads: the process ends, or is at its limit
        hash_it()
    return future


def _in_file(path: Path) -> Digests:
    found = hashlib.sha256()
    # Not from the C library, which would keep more of what ONNX Runtime frees: 60 MiB more at the peak.
    chunk = memoryview(mmap(-1, _CHUNK))
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        while left > 0 and (count := file.readinto(chunk[:left])):
            found.update(chunk[:count])
            left -= count
        return _ended(found, file.read(DIGEST_BYTES))


def _ended(found: hashlib._Hash, end: bytes) -> Digests:
    """Return the digests of a file, of which all but the end was hashed."""
    is_intact = end == digest_entry(found.hexdigest())
    found.update(end)
    return Digests(found.hexdigest(), is_intact)
