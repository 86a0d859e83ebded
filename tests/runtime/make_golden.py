"""Write golden.json: the bytes that preprocessing gives, worked out in plain Python without Pillow.

    python tests/runtime/make_golden.py

Every implementation, in any language and with any version of Pillow, has to give these bytes. `preprocess`
below is the arithmetic in full: weights with 22 binary digits, columns first, 8 bits between the passes.
`textbook` is the same in floating point, the way that torchvision writes it (resize first, cut afterwards),
and may differ by one level.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden.json")
BITS = 22  # of a weight, below the point
FILTER_NAMES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def case(
    image: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
    *,
    crop: bool = False,
    to: int | tuple[int, int] | None = None,
    alpha: bool = False,
) -> dict[str, Any]:
    """One case: (height, width) of the image and of the result, and the fields of the specification."""
    resize = "crop" if crop else "stretch"
    return dict(image=image, alpha=alpha, size=size, resize=resize, resize_to=to, interpolation=interpolation)


CASES = [
    *(case((61, 47), (16, 12), name) for name in FILTER_NAMES),
    *(case((9, 7), (16, 12), name) for name in FILTER_NAMES),  # enlarged
    # Pillow 13 takes rows first where in_h - out_h > 0 and > 2 * (in_w - out_w).
    *(case((30, 50), (14, 14), name) for name in ("bilinear", "bicubic")),
    *(case((50, 30), (14, 14), name) for name in FILTER_NAMES[1:]),
    *(case((200, 12), (10, 10), name, crop=crop) for name in FILTER_NAMES[2:5] for crop in (False, True)),
    *(case((61, 47), (14, 14), name, crop=True, to=16) for name in FILTER_NAMES),
    case((47, 90), (14, 14), "bilinear", crop=True, to=16),
    case((90, 47), (8, 20), "bilinear", crop=True),
    case((61, 47), (8, 20), "hamming", crop=True),
    case((3, 80), (8, 8), "lanczos", crop=True, to=10),
    case((1, 2000), (6, 5), "bicubic"),
    case((2000, 1), (6, 5), "bicubic"),
    case((2000, 1), (5, 6), "bilinear", crop=True, to=7),
    case((1, 1), (4, 3), "lanczos"),
    case((300, 4), (12, 4), "bicubic"),  # the columns stay as they are
    case((4, 300), (4, 12), "bicubic"),  # the rows do
    case((12, 20), (12, 20), "lanczos"),
    case((12, 20), (12, 12), "bicubic", crop=True),  # cut at whole pixels, no filter
    case((61, 47), (8, 20), "bicubic", crop=True, to=(9, 23)),
    case((40, 90), (8, 20), "bilinear", crop=True, to=(10, 20)),
    case((61, 47), (14, 12), "bicubic", to=(17, 16)),
    *(case((40, 33), (11, 9), name, alpha=True) for name in ("nearest", "bilinear", "bicubic")),
]


def image_of(height: int, width: int) -> np.ndarray:
    """Return a uint8 [height, width, 3] pattern with smooth parts and hard edges."""
    y, x, channel = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    smooth = (4 * x + 3 * y + 60 * channel) % 256
    return np.where((x // 8 + y // 8) % 2, smooth, 255 - smooth).astype(np.uint8)


def alpha_of(height: int, width: int) -> np.ndarray:
    """Return uint8 [height, width, 1], from transparent to opaque."""
    y, x = np.meshgrid(range(height), range(width), indexing="ij")
    return (((7 * x + 13 * y) % 256)[:, :, None]).astype(np.uint8)


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return RGB over white; 255 is odd, so that no mean lies half way between two levels."""
    mixed = pixels.astype(int) * alpha + 255 * (255 - alpha.astype(int))
    return ((2 * mixed + 255) // 510).astype(np.uint8)


def box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def hamming(x: float) -> float:
    return sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0


def cubic(x: float) -> float:
    """Keys' cubic convolution with a = -0.5."""
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def lanczos(x: float) -> float:
    return sinc(x) * sinc(x / 3) if abs(x) < 3 else 0.0


def sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (box, 0.5),
    "bilinear": (triangle, 1),
    "hamming": (hamming, 1),
    "bicubic": (cubic, 2),
    "lanczos": (lanczos, 3),
}


def weights(before: int, after: int, name: str, edges: tuple[float, float] | None = None) -> np.ndarray:
    """Return [after, before]: how much each input sample counts for each output sample.

    Args:
        before: samples of the input.
        after: samples of the output.
        name: the filter.
        edges: the part of the input that is scaled, in samples; None is all of it.
    """
    start, end = map(np.float32, edges or (0, before))  # Pillow takes them as 32-bit floats
    start, scale = float(start), float(end - start) / after
    matrix = np.zeros((after, before))
    position = start + scale * 0.5
    for row in range(after):
        if name == "nearest":
            matrix[row, int(position)] = 1
            position += scale
            continue
        center = start + (row + 0.5) * scale
        function, support = FILTERS[name]
        stretch = max(scale, 1.0)
        low, high = (
            max(int(center - support * stretch + 0.5), 0),
            min(int(center + support * stretch + 0.5), before),
        )
        for column in range(low, high):
            matrix[row, column] = function((column - center + 0.5) * (1 / stretch))
    return matrix / matrix.sum(axis=1, keepdims=True)


def whole(matrix: np.ndarray) -> np.ndarray:
    """Return weights as whole numbers of 2**-22, none of them half way, where platforms might differ."""
    scaled = matrix * 2**BITS
    assert np.abs(scaled % 1 - 0.5).min() > 1e-6, "choose another size: a weight lies between two numbers"
    return np.rint(scaled).astype(np.int64)


def one_pass(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Apply [after, before] weights to the rows of uint8 [before, other, 3]."""
    sums = np.einsum("ab,boc->aoc", whole(matrix), pixels.astype(np.int64))
    return np.clip((sums + 2 ** (BITS - 1)) >> BITS, 0, 255).astype(np.uint8)


def seen(height: int, width: int, case: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of what the model sees, in pixels of the image."""
    rows, columns = case["size"]
    if case["resize"] == "stretch" and case["resize_to"] is None:
        return 0, 0, width, height
    covered_h, covered_w = covering(height, width, case)
    left, top = round((covered_w - columns) / 2), round((covered_h - rows) / 2)
    x, y = width / covered_w, height / covered_h
    return left * x, top * y, min((left + columns) * x, width), min((top + rows) * y, height)


def covering(height: int, width: int, case: dict[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the whole image, scaled to be cut afterwards."""
    rows, columns = case["size"]
    if isinstance(case["resize_to"], (list, tuple)):
        rows, columns = case["resize_to"]
        if case["resize"] == "stretch":
            return rows, columns
    elif case["resize_to"] is not None:
        short = min(height, width)
        return int(case["resize_to"] * height / short), int(case["resize_to"] * width / short)
    scale = max(columns / width, rows / height)
    return max(rows, round(height * scale)), max(columns, round(width * scale))


def preprocess(pixels: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """Return uint8 [*size, 3]: columns first, then rows."""
    height, width = pixels.shape[:2]
    (rows, columns), name = case["size"], case["interpolation"]
    left, top, right, bottom = seen(height, width, case)
    across = one_pass(weights(width, columns, name, (left, right)), pixels.transpose(1, 0, 2))
    return one_pass(weights(height, rows, name, (top, bottom)), across.transpose(1, 0, 2))


def textbook(pixels: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """Return float64 [*size, 3]: the same without rounding, and cut after scaling."""
    (height, width), (rows, columns), name = pixels.shape[:2], case["size"], case["interpolation"]
    stretch = case["resize"] == "stretch" and case["resize_to"] is None
    covered_h, covered_w = (rows, columns) if stretch else covering(height, width, case)
    across = np.einsum("xw,hwc->hxc", weights(width, covered_w, name), pixels.astype(np.float64))
    scaled = np.einsum("yh,hxc->yxc", weights(height, covered_h, name), np.clip(across, 0, 255))
    top, left = round((covered_h - rows) / 2), round((covered_w - columns) / 2)
    return np.clip(scaled, 0, 255)[top : top + rows, left : left + columns]


def rgb_of(case: dict[str, Any]) -> np.ndarray:
    """Return what a case starts from: uint8 [height, width, 3], transparency over white."""
    pixels = image_of(*case["image"])
    return over_white(pixels, alpha_of(*case["image"])) if case["alpha"] else pixels


def main() -> str:
    """Return the text of golden.json; `pixels` are hexadecimal, row by row."""
    results = [{**each, "pixels": preprocess(rgb_of(each), each).tobytes().hex()} for each in CASES]
    return "[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n"


if __name__ == "__main__":
    GOLDEN.write_text(main())
