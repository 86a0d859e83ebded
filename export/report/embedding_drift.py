"""Drift of embeddings in their own terms: their angle to float32's, and the nearest images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.statistics import Interval, mean_interval
from export.measure.inference import Run
from export.report.number_formats import cosine, percent
from export.report.section import Results, Section

NEAREST = 10  # neighbors whose overlap is measured
ROWS = 512  # images compared with all others at a time: bounds the memory


@dataclass(frozen=True, kw_only=True)
class EmbeddingFigures:
    """Distance of a variant's embeddings from float32's, on the same images. Shares are in per cent."""

    images: int
    cosine: float  # mean over the images of the cosine to float32's embedding
    cosine_low: float | None = None  # 95 % interval of that mean; None for one image
    cosine_high: float | None = None
    worst_cosine: float
    worst_image: int  # its index among the images
    nearest: float | None  # images whose nearest other image is the same; None for fewer than 3 images
    nearest_10: float | None  # of the 10 nearest, those that are the same; None for fewer than 12 images

    @property
    def cosine_interval(self) -> Interval | None:
        """95 % interval of the mean cosine; None for one image."""
        if self.cosine_low is None or self.cosine_high is None:
            return None
        return Interval(self.cosine_low, self.cosine_high)


@dataclass(frozen=True)
class EmbeddingDrift(Section):
    """Figures of each variant other than float32."""

    variants: Mapping[str, EmbeddingFigures]
    template = "embedding_drift.j2"

    @classmethod
    def measure(cls, run: Run) -> EmbeddingDrift | None:
        """Compare the embeddings with float32's; None for a model without the output."""
        if not run.embeddings:
            return None
        exact, *others = map(_normalize, run.embeddings.values())
        names = list(run.embeddings)[1:]
        return cls({name: _compare(exact, rows) for name, rows in zip(names, others, strict=True)})

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the figures of a variant."""
        return {"embedding_drift": asdict(self.variants[variant])} if variant in self.variants else {}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the figures by variant, with the name of the worst image."""
        name = results.images.public_name
        figures = {
            variant: {**asdict(each), "worst_image": name(each.worst_image)}
            for variant, each in self.variants.items()
        }
        return {"embeddings": figures}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return one line per variant."""
        return [
            f"embeddings, {name}: cosine to float32 {cosine(each.cosine)} (worst "
            f"{cosine(each.worst_cosine)}), nearest image the same {percent(each.nearest, 1)}, of the "
            f"nearest ten {percent(each.nearest_10, 1)}"
            for name, each in self.variants.items()
        ]

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the figures of all variants; None where there is none to compare."""
        return {"figures": self.variants, "name": results.images.public_name} if self.variants else None


def _compare(exact: Array, variant: Array) -> EmbeddingFigures:
    """Compare embeddings of length 1 with float32's, both float64 [images, features]."""
    cosines, count = np.clip((exact * variant).sum(axis=1), -1.0, 1.0), len(exact)
    interval = mean_interval(cosines)
    return EmbeddingFigures(
        images=count,
        cosine=float(cosines.mean()),
        cosine_low=None if interval is None else interval.low,
        cosine_high=None if interval is None else min(interval.high, 1.0),
        worst_cosine=float(cosines.min()),
        worst_image=int(cosines.argmin()),
        nearest=_share_neighbors(exact, variant, 1) if count >= 3 else None,
        nearest_10=_share_neighbors(exact, variant, NEAREST) if count >= NEAREST + 2 else None,
    )


def _normalize(rows: Array) -> Array:
    exact = rows.astype(np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300))


def _share_neighbors(exact: Array, variant: Array, count: int) -> float:
    """Return how many of the `count` nearest other images are the same in both, in per cent."""
    hits = 0
    for start in range(0, len(exact), ROWS):
        before, after = (_find_nearest(each, start, count) for each in (exact, variant))
        hits += sum(len(np.intersect1d(a, b)) for a, b in zip(before, after, strict=True))
    return 100 * hits / (len(exact) * count)


def _find_nearest(rows: Array, start: int, count: int) -> Array:
    """Return the indices of the `count` nearest others of some rows, int64 [rows, count]."""
    part = rows[start : start + ROWS]
    similarity = part @ rows.T
    similarity[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf  # never itself
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
