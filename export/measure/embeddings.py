"""Drift of embeddings in their own terms: their angle to float's, and whether the same images are nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.statistics import Interval, mean_interval

NEAREST = 10  # neighbors whose overlap is measured
ROWS = 512  # images compared with all others at a time: bounds the memory


@dataclass(frozen=True, kw_only=True)
class EmbeddingDrift:
    """Distance of a variant's embeddings from float32's, on the same images. Shares are in per cent."""

    images: int
    cosine: float  # mean over the images of the cosine to float's embedding
    cosine_low: float | None = None  # 95 % interval of that mean; None for one image
    cosine_high: float | None = None
    worst_cosine: float
    worst_image: int  # its index among the images
    nearest: float | None  # images whose nearest other image is the same; None for fewer than 3 images
    nearest_10: float | None  # of the 10 nearest, those that are the same; None for fewer than 12 images

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json and the metadata."""
        return asdict(self)

    @property
    def cosine_interval(self) -> Interval | None:
        """Of the mean cosine (95 %); None for one image."""
        if self.cosine_low is None or self.cosine_high is None:
            return None
        return Interval(self.cosine_low, self.cosine_high)


def measure_embeddings(rows: Mapping[str, Array]) -> dict[str, EmbeddingDrift]:
    """Compare each variant's embeddings with those of "float32".

    Args:
        rows: float32 [images, D] by variant.
    """
    exact = _unit(rows["float32"])
    return {name: _drift(exact, _unit(each)) for name, each in rows.items() if name != "float32"}


def _drift(exact: Array, variant: Array) -> EmbeddingDrift:
    cosines = np.clip((exact * variant).sum(axis=1), -1.0, 1.0)
    count = len(exact)
    interval = mean_interval(cosines)
    one = _same(exact, variant, 1) if count >= 3 else None
    ten = _same(exact, variant, NEAREST) if count >= NEAREST + 2 else None
    return EmbeddingDrift(
        images=count,
        cosine=float(cosines.mean()),
        cosine_low=None if interval is None else interval.low,
        cosine_high=None if interval is None else min(interval.high, 1.0),
        worst_cosine=float(cosines.min()),
        worst_image=int(cosines.argmin()),
        nearest=one,
        nearest_10=ten,
    )


def _unit(rows: Array) -> Array:
    exact = rows.astype(np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300))


def _same(exact: Array, variant: Array, count: int) -> float:
    """Return how many of the `count` nearest other images are the same in both, in per cent."""
    hits = 0
    for start in range(0, len(exact), ROWS):
        before, after = (_nearest(each, start, count) for each in (exact, variant))
        hits += sum(len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True))
    return 100 * hits / (len(exact) * count)


def _nearest(rows: Array, start: int, count: int) -> Array:
    """Return the indices of the `count` nearest others of some rows, int64 [rows, count]."""
    part = rows[start : start + ROWS]
    alike = part @ rows.T
    alike[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf  # never itself
    return np.argsort(-alike, axis=1, kind="stable")[:, :count]
