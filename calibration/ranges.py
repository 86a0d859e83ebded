"""Range of a tensor that becomes 0..255: rules that look at a histogram, or at the extremes alone.

Nagel et al. (arXiv 2106.08295, section 3.1) compare such rules, Wu et al. (arXiv 2004.09602, section 5) those
with a percentile and with the divergence. No rule wins everywhere, so that `calibration.trial` compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from calibration.graph.edit import Array
from calibration.plan import Range

BINS = 2048
MARGIN = 1.1  # room for values of images that calibration does not have
PERCENTILE = 99.99
SHRINKS = np.linspace(1.0, 0.3, 15)  # shares of the extremes that compete
Bounds = tuple[float, float]


class Histogram:
    """Streaming counts of a tensor's values, in bins that double their width when a value falls outside."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0  # the bins cover -limit to limit

    def update(self, values: Array) -> None:
        """Add all values of an array of any shape."""
        largest = float(np.abs(values).max(initial=0.0))
        if self.limit == 0.0:
            self.limit = largest
        while largest > self.limit > 0:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 4)
            self.limit *= 2
        if self.limit > 0:
            self.counts += np.histogram(values, BINS, (-self.limit, self.limit))[0]

    @property
    def centers(self) -> Array:
        """The middle of each bin."""
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit


def min_max(_histogram: Histogram, low: float, high: float) -> Bounds:
    """Return the extremes as they are."""
    return low, high


def with_margin(_histogram: Histogram, low: float, high: float) -> Bounds:
    """Return the extremes times 1.1: finer steps are worth less than room for a new image."""
    return low * MARGIN, high * MARGIN


def percentile(histogram: Histogram, low: float, high: float) -> Bounds:
    """Return the bounds without the outermost 0.01 % of the values, half of it on each side."""
    if not histogram.counts.any():
        return low, high
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (100 - PERCENTILE) / 200
    first, last = np.searchsorted(shares, [tail, 1 - tail])
    centers = histogram.centers
    return max(low, float(centers[first])), min(high, float(centers[min(last, BINS - 1)]))


def _best_shrink(
    cost: Callable[[Array, Array, Range], float], histogram: Histogram, low: float, high: float
) -> Bounds:
    """Return the share of the extremes with the least cost."""
    if not histogram.counts.any():  # a tensor of zeros
        return low, high
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    costs = [cost(centers, counts, Range.of(low * shrink, high * shrink)) for shrink in SHRINKS]
    best = float(SHRINKS[int(np.argmin(costs))])
    return low * best, high * best


def _error_energy(centers: Array, counts: Array, chosen: Range) -> float:
    """Return the rounding and clipping error of the tensor itself."""
    return float((np.square(chosen.fake_quantize(centers) - centers) * counts).sum())


def _divergence(centers: Array, counts: Array, chosen: Range) -> float:
    """Return the Kullback-Leibler divergence of the 256 levels (Migacz, TensorRT, GTC 2017)."""
    levels = np.rint(chosen.fake_quantize(centers) / chosen.scale).astype(np.int64) + chosen.zero_point
    low, high = ((end - chosen.zero_point) * chosen.scale for end in (-0.5, 255.5))
    occupied = (counts > 0) & (centers >= low) & (centers <= high)
    # Each level's share spread evenly over the bins that it stands for, as it would be read.
    bins = np.bincount(levels[occupied], minlength=256)
    mass = np.bincount(levels, weights=counts, minlength=256)
    spread = np.where(occupied, mass[levels] / np.maximum(bins[levels], 1), 0.0)
    p, q = counts / counts.sum(), spread / max(spread.sum(), 1e-300)
    present = counts > 0
    return float((p[present] * np.log(p[present] / np.maximum(q[present], 1e-12))).sum())


RULES: Mapping[str, Callable[[Histogram, float, float], Bounds]] = {
    "min-max": min_max,
    "margin": with_margin,
    "percentile": percentile,
    "mse": partial(_best_shrink, _error_energy),
    "entropy": partial(_best_shrink, _divergence),
}
