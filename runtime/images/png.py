"""PNG: pixels that end before the image does, which Pillow shows as black."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from ..errors import ImageError

_BLOCK = 2**16
_SAMPLES = {2: 3, 4: 2, 6: 4}  # per pixel, by color type; the others have one
# First row and column of each pass of an interlaced file, and the steps between them.
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read_chunks(file: IO[bytes], start: int) -> Iterator[tuple[bytes, int, int]]:
    """Give the name of each chunk of a PNG that begins at `start`, where its data begin, and their length."""
    at = start + 8
    file.seek(at)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[:4], "big")
        yield header[4:], at + 8, length
        at += 12 + length
        file.seek(at)


def check_end(image: Image.Image, file: IO[bytes]) -> None:
    """Refuse a PNG whose pixels end early. They are inflated again, which takes half as long as decoding.

    Args:
        image: a decoded PNG.
        file: is left where it was; one that Pillow has closed by now is opened again.

    Raises:
        ImageError: for fewer bytes of pixels than its header states.
    """
    if file.closed:
        with Path(image.filename).open("rb") as again:  # type: ignore[attr-defined]
            check_end(image, again)
        return
    before = file.tell()
    file.seek(24)
    bits, color, _, _, interlaced = file.read(5)
    bits *= _SAMPLES.get(color, 1)
    expected = _bytes_of(image.size, bits, _PASSES if interlaced else ((0, 0, 1, 1),))
    if _count_pixels(file, expected) < expected:
        raise ImageError("its pixels end early: rows are missing")
    file.seek(before)


def _bytes_of(size: tuple[int, int], bits: int, passes: tuple[tuple[int, int, int, int], ...]) -> int:
    """Return the bytes of all rows, with one more for each; `bits` per pixel."""
    total = 0
    for top, left, down, right in passes:
        columns, rows = -(-max(size[0] - left, 0) // right), -(-max(size[1] - top, 0) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _count_pixels(file: IO[bytes], most: int) -> int:
    """Count the inflated bytes of the pixels, up to `most`."""
    inflating, count, found = zlib.decompressobj(), 0, False
    for name, at, length in read_chunks(file, 0):
        if name != b"IDAT":
            if found:  # Pillow ends here, too
                break
            continue
        found = True
        file.seek(at)
        while length > 0 and count < most and (block := file.read(min(length, _BLOCK))):
            length -= len(block)
            while block and count < most:
                count += len(inflating.decompress(block, _BLOCK))
                block = inflating.unconsumed_tail
    return count
