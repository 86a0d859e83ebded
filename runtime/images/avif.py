"""AVIF: sizes of the AV1 images in the file, which may be far larger than the size that it states."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import IO

from ..errors import ImageError, describe_pixel_limit

_MOST = 10_000  # boxes, items or parts; real files have 50, and a grid of tiles some hundreds
_START = 512  # bytes of an image, within which its sequence header stands
_SEQUENCE_HEADER = 1
# Boxes of boxes, and the bytes before the first of them.
_NESTED = {b"jp2h": 0, b"meta": 4, b"iinf": 6, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
_DAMAGED = "it is AVIF of a rare kind, or its header is damaged; convert it to PNG"


class _Bits:
    """Numbers of any number of bits, read from bytes; the most significant bit comes first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ImageError(_DAMAGED)
        return self._value >> self._left & ((1 << count) - 1)


def check_avif(file: IO[bytes], max_pixels: int) -> None:
    """Refuse an AVIF with an AV1 image of too many pixels: each is decoded at its own size."""
    boxes = list(islice(read_boxes(file, 0, file.seek(0, 2)), _MOST))
    starts = list(_images(file, boxes))
    if not starts or len(boxes) == _MOST:
        raise ImageError(_DAMAGED)
    for start in starts:
        columns, rows = _size_of(start)
        if columns * rows > max_pixels:
            found = f"it holds an image of {columns} x {rows} pixels"
            raise ImageError(f"{found}, more than {describe_pixel_limit(max_pixels)}")


def read_boxes(file: IO[bytes], at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box and where its content begins and ends; boxes inside others follow them.

    This is the container of AVIF and JPEG 2000 (ISO/IEC 14496-12, 4.2): length, kind, content. The first box
    begins at `at`, and the last one ends at `end` at the latest. The file's position changes.
    """
    while True:
        header = _read(file, at, at + 16)
        length, kind, skip = int.from_bytes(header[:4], "big"), header[4:8], 8
        if length == 1:
            length, skip = int.from_bytes(header[8:], "big"), 16
        stop = min(at + length, end) if length else end
        if at + 8 > end or stop < at + skip:
            return
        yield kind, at + skip, stop
        if kind in _NESTED:
            more = 2 if kind == b"iinf" and _read(file, at + skip, at + skip + 1) != b"\0" else 0
            yield from read_boxes(file, at + skip + _NESTED[kind] + more, stop)
        at = stop


def _images(file: IO[bytes], boxes: list[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """Yield the first bytes of each AV1 image, and of each track of frames."""
    inside = next((at for kind, at, _ in boxes if kind == b"idat"), 0)
    entries = [_read(file, at, end) for kind, at, end in boxes if kind == b"infe"]
    # The number of an item has two bytes up to version 2, and four from version 3 on.
    images = {
        int.from_bytes(entry[4:end], "big")
        for entry in entries
        for end in [6 if entry[:1] <= b"\2" else 8]
        if entry[end + 2 : end + 6] == b"av01"
    }
    for kind, at, end in boxes:
        if kind == b"iloc":
            for number, parts in _items(_Bits(_read(file, at, end)), inside):
                if number in images:
                    yield b"".join(_read(file, first, last) for first, last in parts[:_START])[:_START]
        elif kind in (b"stco", b"co64"):
            first = int.from_bytes(_read(file, at + 8, at + (12 if kind == b"stco" else 16)), "big")
            yield _read(file, first, first + _START)


def _items(bits: _Bits, inside: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the number of each item, and where its parts begin and end, at most `_START` bytes of each."""
    version, _ = bits.read(8), bits.read(24)
    offset, length, base, index = (8 * bits.read(4) for _ in range(4))
    wide = 32 if version == 2 else 16
    left = _MOST
    for _ in range(bits.read(wide)):
        number = bits.read(wide)
        within = bits.read(16) & 15 if version else 0
        bits.read(16)
        start = bits.read(base) + (inside if within == 1 else 0)
        parts = []
        for _ in range(bits.read(16)):
            bits.read(index if version else 0)
            first = start + bits.read(offset)
            parts.append((first, first + min(bits.read(length) or _START, _START)))
            left -= 1
            if left < 0 or within > 1:
                raise ImageError(_DAMAGED)
        yield number, parts


def _size_of(start: bytes) -> tuple[int, int]:
    """Return (width, height) by the sequence header among the first parts of an AV1 stream."""
    at = 0
    while at < len(start):
        kind, extended, sized = start[at] >> 3 & 15, start[at] >> 2 & 1, start[at] >> 1 & 1
        at += 1 + extended
        length = shift = 0
        while sized and at < len(start):  # seven bits per byte, the lowest first
            length |= (start[at] & 127) << shift
            sized, shift, at = start[at] >> 7, shift + 7, at + 1
        if kind == _SEQUENCE_HEADER:
            return _size_of_sequence(_Bits(start[at:]))
        at += length
    raise ImageError(_DAMAGED)


def _size_of_sequence(bits: _Bits) -> tuple[int, int]:
    """Return (width, height) by a sequence header: AV1 specification, 5.5.1."""
    bits.read(4)
    if bits.read(1):  # a still image with a short header
        bits.read(5)
    else:
        delay = 0
        if bits.read(1):  # times
            bits.read(64)
            if bits.read(1):
                zeros = 0
                while not bits.read(1):
                    zeros += 1
                bits.read(zeros)
            if bits.read(1):
                delay = bits.read(5) + 1
                bits.read(42)
        shown = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay and bits.read(1):
                bits.read(2 * delay + 1)
            if shown and bits.read(1):
                bits.read(4)
    width, height = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width) + 1, bits.read(height) + 1


def _read(file: IO[bytes], start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(max(end - start, 0))
