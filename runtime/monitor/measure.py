"""Statistics of one image and of one answer. An export and a device measure them alike."""

from __future__ import annotations

from hashlib import shake_256
from math import log, log2, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ..images.preprocess import Pixels

if TYPE_CHECKING:
    import numpy.typing as npt

IMAGE = (
    *("brightness", "contrast", "peak", "sharpness", "detail", "warmth", "tint", "white"),
    *("size", "shape"),  # before preprocessing
)
SCORE = "score"
EMBEDDING = tuple(f"embedding {number}" for number in range(1, 5))  # projections
NAMES = (*IMAGE, SCORE, *EMBEDDING)
DIGITS = 4  # decimals of a value: kernels of other devices differ behind them
_SAMPLES = 32  # rows and columns of pixels that are read, about: all would take longer than the time allowed
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def measure_image(pixels: Pixels, size: tuple[int, int]) -> tuple[float, ...]:
    """Return the statistics `IMAGE` of an image.

    brightness, contrast and peak are mean, standard deviation and maximum of the luma, 0 to 1. detail is the
    root mean square of second differences along rows, 0 to 2, and sharpness the same divided by that of first
    differences, 0 to 2: blur lowers both, noise raises both. warmth is the logarithm of mean red over blue,
    tint that of mean green over the geometric mean of red and blue, white that of the highest red over the
    highest blue. size is the logarithm (base 2) of the edge of a square with as many pixels, and shape that
    of width over height.

    Args:
        pixels: after preprocessing, uint8 [H, W, 3].
        size: (width, height) before preprocessing, upright.
    """
    step = max(1, min(pixels.shape[:2]) // _SAMPLES)
    color = pixels[::step, ::step].transpose(2, 0, 1).reshape(3, -1).astype(np.float32)
    ones = np.ones(color.shape[1], np.float32)
    luma = _LUMA @ color  # products with BLAS: NumPy's mean takes five times as long for so few
    red, green, blue = (float(each) / len(ones) + 1 for each in color @ ones)  # 1: black has a logarithm
    brightness = float(luma @ ones) / len(luma)
    contrast = sqrt(max(float(luma @ luma) / len(luma) - brightness**2, 0))
    lines = pixels[:: 2 * step, :, 1].astype(np.float32)
    first = lines[:, 1:] - lines[:, :-1]
    second = first[:, 1:] - first[:, :-1]
    slopes, bends = (float(each.ravel() @ each.ravel()) / max(each.size, 1) for each in (first, second))
    white_red, _, white_blue = color.max(axis=1).tolist()
    width, height = size
    return (
        brightness / 255,
        contrast / 255,
        float(luma.max()) / 255,
        sqrt(bends / slopes) if slopes else 0.0,
        sqrt(bends) / 255,
        log(red / blue),
        log(green * green / (red * blue)) / 2,
        log((white_red + 1) / (white_blue + 1)),
        log2(width * height) / 2,
        log2(width / height),
    )


def make_projection(features: int) -> npt.NDArray[np.float32]:
    """Return the signs that project an embedding to `EMBEDDING`, float32 [features, 4].

    They come from a hash, so that every device has the same.

    Args:
        features: of the embedding.
    """
    count = len(EMBEDDING) * features
    bits = np.unpackbits(np.frombuffer(shake_256(b"vit-edge").digest(count // 8 + 1), np.uint8))[:count]
    return (2 * bits.astype(np.float32) - 1).reshape(features, len(EMBEDDING))


def measure_embedding(
    row: npt.NDArray[np.float32], projection: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the statistics `EMBEDDING`: an embedding of length 1, projected; its spread is about 1.

    Args:
        row: float32 [features], of any length but 0.
        projection: of `make_projection`.
    """
    found: npt.NDArray[np.float32] = row @ projection / max(float(np.linalg.norm(row)), 1e-30)
    return found
