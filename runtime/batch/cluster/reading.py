"""The contents of many image files, read a few ahead of the one that is being labeled."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...concurrency import in_parallel
from ...errors import FailureError
from ...text import clean_line
from .sources import LOCAL, Place, open_uri

_THREADS = 8  # what hides 100 ms of a store's latency behind images of 30 ms, and leaves some room
_AHEAD = 16  # files
_LARGE = 2**23  # bytes; larger files are read when it is their turn: 16 × 8 MiB is what may lie ready
_PAUSES = (0.5, 2.0)  # seconds before a store is asked again


@dataclass(frozen=True, slots=True)
class Content:
    """Content that was read of one file.

    Args:
        data: its bytes; a local path where the decoder shall read, or explain, the file itself; None if there
            is an `error`.
        error: why there is nothing.
        store_failed: whether that is the store's fault, and not a file that is missing or too large.
    """

    data: bytes | Path | None
    error: str | None = None
    store_failed: bool = False


class StoreError(FailureError):
    """A store that gave none of the files of a chunk: not the files are at fault."""


def read_ahead(place: Place, keys: Sequence[str], *, base: str, largest: int) -> Iterator[Content]:
    """Read files in order, some of them ahead on other threads.

    Args:
        place: the folder or store that holds the files.
        keys: the files' names in `place`.
        base: the folder that relative local paths start from.
        largest: a remote file with more bytes than this is an error.
    """
    read = partial(_read, place, base=base, largest=largest, limit=min(_LARGE, largest))
    for key, content in zip(keys, in_parallel(read, keys, workers=_THREADS, ahead=_AHEAD), strict=True):
        yield content or read_one(place, key, base=base, largest=largest)


def read_one(place: Place, key: str, *, base: str, largest: int) -> Content:
    """Read one file now. Arguments are those of `read_ahead`."""
    content = _read(place, key, base=base, largest=largest, limit=largest)
    assert content is not None  # nothing is above this limit that is not an error
    return content


def _read(place: Place, key: str, *, base: str, largest: int, limit: int) -> Content | None:
    """Read a file of at most `limit` bytes; None if it has more of them, and not more than `largest`."""
    if place == LOCAL or not place.prefix:
        return _read_local(Path(base, key), limit)
    for pause in (*_PAUSES, None):
        try:
            return _read_remote(place, key, largest, limit)
        except (FileNotFoundError, IsADirectoryError) as error:
            return Content(None, f"it cannot be opened: {_why(error)}")
        except OSError as error:
            if pause is None or isinstance(error, PermissionError):
                return Content(None, f"the store did not give it: {_why(error)}", store_failed=True)
            time.sleep(pause)
    raise AssertionError("the last attempt returns")


def _read_local(path: Path, limit: int) -> Content:
    """Read an ordinary file; the decoder opens any other itself, and says what is wrong with it."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= limit:
            return Content(path.read_bytes())
    except (OSError, ValueError):
        pass  # told by the decoder, in the words that a single machine uses
    return Content(path)


def _read_remote(place: Place, key: str, largest: int, limit: int) -> Content | None:
    system, _ = open_uri(place.uri)
    with system.open_input_file(key) as file:
        size = file.size()
        if size > largest:
            return Content(None, f"it has {size:,} bytes, more than the limit of {largest:,}")
        return Content(file.read(size)) if size <= limit else None


def _why(error: Any) -> str:
    return clean_line(os.strerror(error.errno) if error.errno else str(error)) or type(error).__name__
