"""Drift of a variant: its difference from the float32 model on the same images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.statistics import MOST_DECIBELS, Interval, Paired, wilson_interval


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The difference between two models' logits. Shares are in per cent, of images."""

    images: int
    agreement: float  # images with the same top-1
    sqnr: float  # dB, 10 · log10(Σ float² / Σ (float - variant)²)
    max_error: float  # largest difference of a logit
    float_top1: float | None = None  # these five: where the true classes are known
    top1: float | None = None
    top1_drop: float | None = None  # percentage points lost
    lost: int | None = None  # images that only the float32 model gets right
    gained: int | None = None  # images that only the variant gets right

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of report.json."""
        return asdict(self)

    @property
    def paired(self) -> Paired | None:
        """Counts behind `top1_drop`; None where the true classes are not known."""
        if self.lost is None or self.gained is None:
            return None
        return Paired(self.lost, self.gained, self.images)

    @property
    def drop_interval(self) -> Interval | None:
        """Interval of `top1_drop`, in percentage points (95 %); None where the true classes are not known."""
        found = None if self.paired is None else self.paired.interval()
        return None if found is None else Interval(-100 * found.high, -100 * found.low)

    @property
    def agreement_interval(self) -> Interval:
        """Interval of `agreement`, in per cent (95 %)."""
        found = wilson_interval(round(self.agreement / 100 * self.images), self.images)
        return Interval(100 * found.low, 100 * found.high)


def measure_drift(
    reference: Array, variant: Array, targets: Array | None = None, same_name: Array | None = None
) -> Drift:
    """Return the drift between the logits `[images, classes]` of the float model and of a variant.

    Args:
        reference: logits of the float model.
        variant: logits of the variant, for the same images.
        targets: the true classes, `int64 [images]`; None leaves out the figures of top-1.
        same_name: for each class the first class of the same name, `int64 [classes]`, where any class of the
            true name is right; None where only the true class itself is.

    Raises:
        ValueError: for no images, or shapes that differ.
    """
    if reference.shape != variant.shape or len(reference) == 0:
        raise ValueError(f"expected logits of the same images, found {reference.shape} and {variant.shape}")
    of_float, of_variant = reference.argmax(axis=1), variant.argmax(axis=1)
    common: dict[str, Any] = dict(
        images=len(reference),
        agreement=100 * float(np.mean(of_float == of_variant)),
        sqnr=sqnr(reference, variant),
        max_error=float(np.abs(reference - variant).max()),
    )
    if targets is None:
        return Drift(**common)
    names = np.arange(reference.shape[1]) if same_name is None else same_name
    before, after = (names[found] == names[targets] for found in (of_float, of_variant))
    paired = Paired.of(before, after)
    old, new = (100 * float(np.mean(right)) for right in (before, after))
    counts = {"lost": paired.lost, "gained": paired.gained}
    return Drift(**common, float_top1=old, top1=new, top1_drop=old - new, **counts)


def sqnr(reference: Array, variant: Array) -> float:
    """Return the signal-to-quantization-noise ratio of logits `[images, classes]` in dB."""
    exact = reference.astype(np.float64)
    return to_decibels(float(np.square(exact).sum()), float(np.square(exact - variant).sum()))


def to_decibels(signal: float, noise: float) -> float:
    """Return 10 · log10(signal / noise) of two energies; 200 stands for no difference at all."""
    if noise == 0:
        return MOST_DECIBELS
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -MOST_DECIBELS, MOST_DECIBELS))
