"""Write golden.json: what preprocessing gives, worked out in plain float64 and without Pillow.

    python tests/runtime/make_golden.py

Pillow's filters are the textbook ones: each output pixel is the weighted mean of the input pixels around its
centre, the filter as wide as the image shrinks, rows and columns one after the other. "crop" is written
here the way torchvision does it, resize first and cut afterwards, where the runtime does both in one step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("golden.json")
CASES: list[dict[str, Any]] = [
    {"image": [61, 47], "size": [16, 12], "resize": "stretch", "resize_to": None, "interpolation": name}
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
] + [
    {"image": [9, 7], "size": [16, 12], "resize": "stretch", "resize_to": None, "interpolation": "bicubic"},
    {"image": [61, 47], "size": [14, 14], "resize": "crop", "resize_to": 16, "interpolation": "bicubic"},
    {"image": [47, 90], "size": [14, 14], "resize": "crop", "resize_to": 16, "interpolation": "bilinear"},
    {"image": [61, 47], "size": [8, 20], "resize": "crop", "resize_to": None, "interpolation": "bilinear"},
    {"image": [3, 80], "size": [8, 8], "resize": "crop", "resize_to": 10, "interpolation": "lanczos"},
]


def image(height: int, width: int) -> np.ndarray:
    """A uint8 [height, width, 3] pattern with smooth parts and hard edges."""
    y, x, channel = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    smooth = (4 * x + 3 * y + 60 * channel) % 256
    return np.where((x // 8 + y // 8) % 2, smooth, 255 - smooth).astype(np.uint8)


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


def weights(before: int, after: int, name: str) -> np.ndarray:
    """[after, before]: how much each input sample counts for each output sample."""
    scale = before / after
    matrix = np.zeros((after, before))
    for row in range(after):
        centre = (row + 0.5) * scale
        if name == "nearest":
            matrix[row, int(centre)] = 1
            continue
        function, support = FILTERS[name]
        stretch = max(scale, 1.0)
        low, high = (
            max(int(centre - support * stretch + 0.5), 0),
            min(int(centre + support * stretch + 0.5), before),
        )
        for column in range(low, high):
            matrix[row, column] = function((column - centre + 0.5) / stretch)
    return matrix / matrix.sum(axis=1, keepdims=True)


def resize(pixels: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    rows, columns = weights(pixels.shape[0], height, name), weights(pixels.shape[1], width, name)
    across = np.clip(np.einsum("xw,hwc->hxc", columns, pixels.astype(np.float64)), 0, 255)
    return np.clip(np.einsum("yh,hxc->yxc", rows, across), 0, 255)


def preprocess(pixels: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    (before_h, before_w), (height, width) = pixels.shape[:2], case["size"]
    if case["resize"] == "stretch":
        return resize(pixels, height, width, case["interpolation"])
    if case["resize_to"] is not None:
        short = min(before_h, before_w)
        covered = int(case["resize_to"] * before_h / short), int(case["resize_to"] * before_w / short)
    else:
        scale = max(height / before_h, width / before_w)
        covered = max(height, round(before_h * scale)), max(width, round(before_w * scale))
    resized = resize(pixels, *covered, case["interpolation"])
    top, left = round((covered[0] - height) / 2), round((covered[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def main() -> str:
    """The text of golden.json."""
    results = [
        {**case, "pixels": np.rint(preprocess(image(*case["image"]), case)).astype(int).ravel().tolist()}
        for case in CASES
    ]
    return "[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n"


if __name__ == "__main__":
    GOLDEN.write_text(main())
