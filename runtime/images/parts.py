"""Chunks of PNG, segments of JPEG and comments of plain PPM, counted before Pillow is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from ..errors import ImageError
from .jpeg import next_marker

# Honest files have 20 parts, and pixels in chunks of 8 KiB or more.
_MOST_PARTS, _BYTES_PER_PART = 10_000, 4096
_MOST_PADDING = _BLOCK = 2**16
_MOST_COMMENTS = 1000
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_SOS = 0xDA


def check_parts(file: IO[bytes], length: int) -> None:
    """Check a file before Pillow opens it; other formats are left alone.

    Args:
        file: at its start, where it is left.
        length: of the file in bytes.

    Raises:
        ImageError: for far more chunks or segments than its length explains, or bytes that are none.
    """
    start = file.read(8)
    parts = _chunks(file) if start == _PNG else _segments(file) if start.startswith(_JPEG) else ()
    most = _MOST_PARTS + length // _BYTES_PER_PART
    for number, _ in enumerate(parts):
        if number >= most:
            raise ImageError(f"it has more than {most:,} chunks or segments (usual: 10 to 20); save it again")
    file.seek(0)


def check_comments(file: IO[bytes]) -> None:
    """Check the comments of a plain PPM, for each of which Pillow copies a megabyte.

    Args:
        file: is left anywhere.

    Raises:
        ImageError: for more of them than files have.
    """
    file.seek(0)
    count = 0
    while block := file.read(_BLOCK):
        count += block.count(b"#")
        if count > _MOST_COMMENTS:
            raise ImageError(f"it has more than {_MOST_COMMENTS:,} comments (usual: 1); convert it to PNG")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while len(header := file.read(8)) == 8:
        yield header
        file.seek(int.from_bytes(header[:4], "big") + 4, 1)


def _segments(file: IO[bytes]) -> Iterator[int]:
    """Give the markers up to the first scan."""
    file.seek(2)
    padding, at = 0, 2
    while (marker := next_marker(file)) is not None:
        yield marker
        padding += file.tell() - 2 - at
        if padding > _MOST_PADDING:
            raise ImageError(f"it has more than {_MOST_PADDING:,} bytes between its segments; save it again")
        if marker == _SOS:
            return
        file.seek(max(int.from_bytes(file.read(2), "big") - 2, 0), 1)
        at = file.tell()
