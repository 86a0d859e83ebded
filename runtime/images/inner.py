"""Sizes of images inside icons of Windows and macOS, known before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO

from ..errors import ImageError

_ICO = b"\0\0\1\0"
_PNG, _CODESTREAM, _JP2 = b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
# By the length of their headers.
_BITMAPS = frozenset(length.to_bytes(4, "little") for length in (40, 52, 56, 64, 108, 124))
_MOST_PARTS = 1000  # of an icon of macOS: honest ones have 20
_LONGEST_EDGE = 1024  # of an icon: Windows has up to 256, macOS up to this


def check_ico(file: IO[bytes], check: Callable[[tuple[int, int]], object]) -> None:
    """Check the images inside an icon of Windows, which Pillow decodes as it opens the file.

    Args:
        file: any file, at its start, where it is left.
        check: takes (width, height), and raises an error for a size that must not be decoded.

    Raises:
        ImageError: for an image larger than icons are.
    """
    start = file.read(6)
    if start.startswith(_ICO):
        entries = file.read(16 * int.from_bytes(start[4:], "little"))
        for at in range(12, len(entries) - 3, 16):
            file.seek(int.from_bytes(entries[at : at + 4], "little"))
            size = _size_of(file.read(64))
            check(size)
            _check_edges(size)
    file.seek(0)


def check_icns(file: IO[bytes]) -> Iterator[int]:
    """Check the images inside an icon of macOS, and give where its PNG files begin.

    Args:
        file: the icon; is left anywhere.

    Raises:
        ImageError: for an image larger than such icons may be.
    """
    at = 8
    for _ in range(_MOST_PARTS):
        file.seek(at)
        start = file.read(72)
        length = int.from_bytes(start[4:8], "big")
        if len(start) < 8 or length < 8:
            return
        _check_edges(_size_of(start[8:]))
        if start.startswith(_PNG, 8):
            yield at + 8
        at += length
    raise ImageError(f"it is an icon of more than {_MOST_PARTS} parts")


def _check_edges(size: tuple[int, int]) -> None:
    if max(size) > _LONGEST_EDGE:
        found = f"it is an icon that holds an image of {size[0]} x {size[1]} pixels"
        raise ImageError(f"{found}, more than the {_LONGEST_EDGE} of the largest icons")


def _size_of(start: bytes) -> tuple[int, int]:
    """Return (width, height) by the first 64 bytes of a PNG, JPEG 2000 or bitmap of an icon; else 1 x 1."""

    def big(at: int) -> int:
        return int.from_bytes(start[at : at + 4], "big")

    def little(at: int, length: int = 4) -> int:
        return int.from_bytes(start[at : at + length], "little")

    if start.startswith(_PNG):
        return max(1, big(16)), max(1, big(20))
    if start.startswith(_CODESTREAM):
        return max(1, big(8) - big(16)), max(1, big(12) - big(20))
    if start.startswith(_JP2) and (at := start.find(b"ihdr")) > 0:
        return max(1, big(at + 8)), max(1, big(at + 4))
    if start.startswith(b"\x0c\0\0\0"):
        return max(1, little(4, 2)), max(1, little(6, 2) // 2)
    if start[:4] in _BITMAPS:  # twice as high as it is: a mask follows; negative from top to bottom
        return max(1, little(4)), max(1, min(little(8), 2**32 - little(8)) // 2)
    return 1, 1
