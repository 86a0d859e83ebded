"""Uncertainty of a figure: confidence intervals, and a paired test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest, bootstrap

from calibration.graph import Array

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """Where the true value lies with the confidence asked for."""

    low: float
    high: float


def wilson(hits: int, total: int, *, confidence: float = CONFIDENCE) -> Interval:
    """The share behind `hits` of `total` images, in 0..1 (Wilson 1927; right also near 0 and 1).

    Raises:
        ValueError: unless 0 <= hits <= total and total > 0.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"expected 0 <= hits <= total and total > 0, found {hits} of {total}")
    found = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: how many only one of them gets right.

    Attributes:
        lost: right in the first model, wrong in the second.
        gained: wrong in the first, right in the second.
    """

    lost: int
    gained: int
    total: int

    @classmethod
    def of(cls, first: Array, second: Array) -> Paired:
        """From two `bool [images]`: which images each model gets right."""
        first, second = np.asarray(first, bool), np.asarray(second, bool)
        if first.shape != second.shape or first.size == 0:
            raise ValueError(f"expected the same images twice, found {first.shape} and {second.shape}")
        return cls(int((first & ~second).sum()), int((~first & second).sum()), len(first))

    @property
    def difference(self) -> float:
        """Second minus first, in 0..1 of the images."""
        return (self.gained - self.lost) / self.total

    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how often chance alone would make the two differ by so much.

        Where the models are equally good, each image that only one of them gets right is a toss of a coin.
        """
        tosses = self.lost + self.gained
        return float(binomtest(self.lost, tosses).pvalue) if tosses else 1.0

    def interval(self, *, confidence: float = CONFIDENCE) -> Interval:
        """Of `difference` (Bonett and Price 2012: Wald's with one image added to each discordant count).

        It keeps its width when the two agree on every image, where a bootstrap would claim certainty.
        """
        lost, gained = ((count + 1) / (self.total + 2) for count in (self.lost, self.gained))
        center = gained - lost
        variance = max(gained + lost - center * center, 0.0) / (self.total + 2)
        reach = _quantile(confidence) * math.sqrt(variance)
        return Interval(max(-1.0, center - reach), min(1.0, center + reach))


def sqnr_interval(
    reference: Array, variant: Array, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Of the SQNR in dB of logits `[images, classes]`: a bootstrap over images, repeatable by its seed.

    Raises:
        ValueError: when the shapes differ, or there are fewer than two images or no difference at all.
    """
    if reference.shape != variant.shape or len(reference) < 2:
        raise ValueError(
            f"expected logits of the same two or more images, found {reference.shape} and {variant.shape}"
        )
    exact = reference.astype(np.float64)
    signal, noise = np.square(exact).sum(axis=1), np.square(exact - variant).sum(axis=1)
    if not noise.any():
        raise ValueError("expected logits that differ, found none that do")
    found = bootstrap(
        (signal, noise),
        _decibels,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=50,
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def _decibels(signal: Array, noise: Array, axis: int = -1) -> Array:
    """Return the SQNR in dB of each resample."""
    ratio = np.maximum(signal.sum(axis), 1e-300) / np.maximum(noise.sum(axis), 1e-300)
    return np.asarray(10 * np.log10(ratio))


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
