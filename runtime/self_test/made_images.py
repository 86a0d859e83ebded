"""Make images that look like photos to a model: a landscape, shaded and patterned shapes, and grain.

Integers of 32 bits alone, so that every language makes the same bytes: javascript/made_images.mjs is the same
recipe line by line, and docs/reference/model-file.md has it in words. A real ViT-B is sure of its labels for
some of them: of 24 images, 8 have a first logit 2.3 and more above the second, 55 times the noise of INT8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..images.preprocess import Pixels

MOST_EDGE = 1024  # pixels; bounds the time for a size that an untrusted file asks for
_MASK = 0xFFFFFFFF
_SHAPES = (3, 8, 24, 60)  # by the last bits of the seed: from a thing before a landscape to a crowd
_RADIUS = 96  # of every shape, in units of its own coordinates


def make_image(seed: int, height: int, width: int) -> Pixels:
    """Make an image.

    Args:
        seed: 0 to 2^32 - 1.
        height: 1 to `MOST_EDGE`, pixels.
        width: the same.

    Returns:
        uint8 [height, width, 3], RGB; the same bytes on every machine.

    Raises:
        ValueError: for arguments outside these limits.
    """
    if not (0 <= seed <= _MASK and 1 <= height <= MOST_EDGE and 1 <= width <= MOST_EDGE):
        raise ValueError(
            f"expected a seed from 0 to {_MASK} and edges from 1 to {MOST_EDGE}, "
            f"found {seed}, {height} and {width}"
        )
    image = _paint_landscape(seed, height, width)
    count = _SHAPES[seed & 3]
    for index in range(count):
        _paint_shape(image, seed, index, index * 4 // count)
    bits = max(height, width).bit_length()
    grain = _sum_octaves(seed, 9, range(max(bits - 3, 0), -1, -1), height, width) - 128
    fine = (_make_noise(seed, 10, 0, height, width) >> 8) - 128
    image += ((grain * 40 >> 6) + (fine >> 4))[..., None]
    made: Pixels = np.clip(image, 0, 255).astype(np.uint8)
    return made


def _mix(bits: Any) -> Any:
    """Hash 32 bits to 32 bits (lowbias32 of Chris Wellons): an int, or uint64 of any shape."""
    bits = bits & _MASK
    bits = (bits ^ bits >> 16) * 0x7FEB352D & _MASK
    bits = (bits ^ bits >> 15) * 0x846CA68B & _MASK
    return bits ^ bits >> 16


def _draw(seed: int, layer: int, a: Any, b: Any) -> Any:
    """Return 32 random bits for a place, or uint64 bits for many places."""
    return _mix(_mix(_mix(seed * 0x9E3779B1 + layer) + a * 0x85EBCA77) + b * 0xC2B2AE3D)


def _make_noise(seed: int, layer: int, cell: int, height: int, width: int) -> Any:
    """Return smooth noise of cells of 2^cell pixels: int64 [height, width], 0 to 65,280."""
    rows, columns = (np.arange((edge >> cell) + 2, dtype=np.uint64) for edge in (height, width))
    corners = (_draw(seed, layer * 64 + cell, rows[:, None], columns) >> 24).astype(np.int64)
    (top, down), (left, across) = (_find_cells(edge, cell) for edge in (height, width))
    lines = corners[:, left] * (256 - across) + corners[:, left + 1] * across
    return (lines[top] * (256 - down[:, None]) + lines[top + 1] * down[:, None]) >> 8


def _find_cells(edge: int, cell: int) -> tuple[Any, Any]:
    """Return for each pixel of an edge its cell, and its place within, 0 to 255, on a smooth step."""
    pixels = np.arange(edge)
    place = ((pixels & (1 << cell) - 1) << 8) >> cell
    return pixels >> cell, place * place * (768 - 2 * place) >> 16


def _sum_octaves(seed: int, layer: int, cells: range, height: int, width: int) -> Any:
    """Return noise of cells from large to small, each with half the amplitude: 0 to 255."""
    total = sum(
        _make_noise(seed, layer, max(cell, 0), height, width) << (len(cells) - 1 - octave)
        for octave, cell in enumerate(cells)
    )
    return total >> (len(cells) + 8)


def _draw_color(seed: int, index: int) -> list[int]:
    """Return a color: a luminance, and less chroma."""
    luminance = 40 + ((_draw(seed, 7, index, 9) >> 24) * 3 >> 2)
    return [
        luminance + (((_draw(seed, 7, index, 10 + channel) >> 24) - 128) >> 1 + (seed >> 2 & 1))
        for channel in range(3)
    ]


def _paint_landscape(seed: int, height: int, width: int) -> Any:
    """Return int64 [height, width, 3]: a bright sky, and ground below a line of hills."""
    bits = max(height, width).bit_length()
    cells = range(bits - 2, bits - 7, -1)
    clouds = (_sum_octaves(seed, 0, cells, height, width) - 128)[..., None]
    rows = np.arange(height)[:, None, None]
    down = rows * (65536 // height)
    horizon = height * (64 + (_draw(seed, 7, 902, 0) >> 25)) >> 8
    hills = horizon + ((_sum_octaves(seed, 5, cells, 1, width) - 128) * height >> 9)
    sky = _draw_color(seed, 900) + (clouds >> 1) + (down >> 10)
    ground = _draw_color(seed, 901) + clouds - (down * 3 >> 12)
    return np.where(rows >= hills[..., None], ground, sky)


def _paint_shape(image: Any, seed: int, index: int, octave: int) -> None:
    """Paint an ellipse, a rectangle or a rhombus, in place; each octave is half as large."""

    def draw(what: int) -> int:
        return int(_draw(seed, 7, index, what)) >> 24

    height, width = image.shape[:2]
    size = max((max(height, width) >> 2) * (128 + draw(2)) >> 8 + octave, 1)
    scale, a, b = 4096 // size, draw(3) - 128, draw(4) - 128
    x = np.arange(width) - (draw(0) * width >> 8)
    y = np.arange(height)[:, None] - (draw(1) * height >> 8)
    u = np.clip((a * x + b * y) * scale >> 12, -1023, 1023)
    v = np.clip(((a * y - b * x) * scale >> 12) * (64 + (draw(5) >> 1)) >> 6, -1023, 1023)
    square, kind, pattern = u * u + v * v, draw(6) >> 5, draw(8) >> 5
    if kind < 4:
        inside = square < _RADIUS * _RADIUS
    else:
        inside = (np.maximum(abs(u), abs(v)) if kind < 6 else abs(u) + abs(v)) < _RADIUS
    light = 32 - (square >> 7) if kind < 2 else u * (draw(7) - 128) >> 8
    if pattern < 3:  # stripes, a chessboard, or rings
        bands = (u >> 4, u >> 5 ^ v >> 5, square >> 11)[pattern]
        light = light + ((bands & 1) << 6) - 32
    image[inside] = _draw_color(seed, index) + light[inside][:, None]
