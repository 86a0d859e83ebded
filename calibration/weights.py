"""int8 weights: symmetric, one scale per output channel."""

from __future__ import annotations

import numpy as np

from calibration.graph.edit import Array
from runtime.model_file.targets import Target

INT16_MAX = 32767
MOST_BIAS = 2**30  # half of int32; the other half is for the sums
FLOAT16_NOISE = 1e-6  # of the energy of the weights; rounding to 11 bits makes 1e-7


def quantize_weight(
    weight: Array, target: Target, *, ratio: Array | float = 1.0, least: Array | float = 1e-30
) -> tuple[Array, Array]:
    """Return `int8 [in, out]` and scales `float32 [out]`, so that weight ≈ int8 · scale.

    An x86 CPU without VNNI adds the products of two neighboring inputs in 16 bits before it widens them:
    255 · (a + b) must stay within int16. For target "any-cpu" each scale is the smallest that keeps every
    neighboring pair within ±128, so the sums are exact on every CPU.

    Args:
        weight: `float [in, out]`.
        target: the form of the weights.
        ratio: of the scales to the smallest that hold all weights, one number or `[out]`; below 1 the largest
            weights are clipped, so that for "any-cpu" it must be 1 or more.
        least: no scale is below it, one number or `[out]`; the default avoids a division by 0.
    """
    weight = np.asarray(weight, np.float32)
    largest = np.abs(weight).max(axis=0) / 127
    if target == "any-cpu":
        largest = np.maximum(largest, _pair_sums(weight).max(axis=0) / (INT16_MAX // 255 - 1))
    scale = np.maximum(largest * ratio, np.asarray(least, np.float32)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale


def fits_float16(weight: Array) -> bool:
    """Return whether float16 holds the weights with an error 60 dB below them: neither huge nor all tiny."""
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        return False
    exact = np.asarray(weight, np.float64)
    error = exact - exact.astype(np.float16)
    return float(np.square(error).sum()) <= FLOAT16_NOISE * float(np.square(exact).sum())


def _pair_sums(weight: Array) -> Array:
    """Return the larger of the sums of the positive and of the negative parts of inputs 2 i and 2 i + 1."""
    padded = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]), np.float32)])
    pairs = padded.reshape(-1, 2, weight.shape[1])
    return np.asarray(np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)))
