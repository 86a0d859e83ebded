"""PNG: forms of which Pillow makes other pixels, and pixels that end early, which it shows as black."""

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
    """Yield the name of each chunk of a PNG that begins at `start`, and position and length of its data."""
    at = start + 8
    file.seek(at)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[:4], "big")
        yield header[4:], at + 8, length
        at += 12 + length
        file.seek(at)


def read_chunks_before_pixels(file: IO[bytes], start: int) -> Iterator[tuple[bytes, int]]:
    """Yield the names of a PNG's chunks before its pixels, and where their data begin."""
    for name, at, _ in read_chunks(file, start):
        if name in (b"IDAT", b"IEND"):
            return
        yield name, at


def check_png(image: Image.Image, file: IO[bytes], *, white_stated: bool) -> None:
    """Refuse forms of a PNG of which Pillow makes other pixels; correct the transparent color of few grays.

    The file's position changes. `white_stated`: the caller stated the 16-bit gray value that is white.
    """
    file.seek(12)
    header = file.read(14)
    if header[:4] != b"IHDR":
        raise ImageError("it is a PNG of an iPhone app, which Pillow does not read; convert it to PNG")
    bits, color = header[12:]
    clear = image.info.get("transparency")
    if color == 0 and bits in (2, 4) and isinstance(clear, int) and clear < 2**bits:
        image.info["transparency"] = clear * (255 // (2**bits - 1))  # as Pillow scales the pixels
    if bits == 16 and color == 2 and clear is not None:
        raise ImageError("it has 16 bits per color and a transparent color; convert it to 8 bits")
    if bits == 16 and white_stated:
        at = next((at for name, at in read_chunks_before_pixels(file, 0) if name == b"sBIT"), None)
        if at is not None:
            file.seek(at)
            if (significant := file.read(1)[0]) < 16:
                found = f"{significant} significant bits, which PNG scales to 16"
                raise ImageError(f"it states {found}, against white_level; remove its sBIT chunk")


def check_last_row(image: Image.Image, file: IO[bytes]) -> None:
    """Refuse a decoded PNG whose pixels end early: the missing rows are blank, or those of a pass.

    The file's position is kept; a file that Pillow has closed by now is opened again.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if image.info.get("interlace") or not any(last_row.tobytes()):
        _check_end(image, file)


def _check_end(image: Image.Image, file: IO[bytes]) -> None:
    """Inflate the pixels again and count their bytes, which takes half as long as decoding."""
    if file.closed:
        with Path(image.filename).open("rb") as again:  # type: ignore[attr-defined]
            _check_end(image, again)
        return
    before = file.tell()
    file.seek(24)
    bits, color, _, _, interlaced = file.read(5)
    bits *= _SAMPLES.get(color, 1)
    expected = _count_expected(image.size, bits, _PASSES if interlaced else ((0, 0, 1, 1),))
    if _count_pixels(file, expected) < expected:
        raise ImageError("its pixels end early: rows are missing")
    file.seek(before)


def _count_expected(size: tuple[int, int], bits: int, passes: tuple[tuple[int, int, int, int], ...]) -> int:
    """Count the bytes of all rows with `bits` per pixel, and the filter byte of each row."""
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
