"""Drift of a variant: its difference from the float32 model on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.label_sets import (
    average_precisions,
    differ,
    interval_of_drop,
    measure_f1,
    predict_answers,
)
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
    figure: ClassVar[str] = "top-1"  # what `drop` is of
    _field: ClassVar[str] = "top1"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of report.json."""
        return asdict(self)

    @property
    def drop(self) -> float | None:
        """Percentage points of `figure` lost; None where the true classes are not known."""
        found: float | None = getattr(self, f"{self._field}_drop")
        return found

    @property
    def accuracy(self) -> float | None:
        """`figure` of the variant, in per cent; None where the true classes are not known."""
        found: float | None = getattr(self, self._field)
        return found

    @property
    def paired(self) -> Paired | None:
        """Counts behind `top1_drop`; None where the true classes are not known."""
        if self.lost is None or self.gained is None:
            return None
        return Paired(self.lost, self.gained, self.images)

    @property
    def drop_interval(self) -> Interval | None:
        """Interval of `drop`, in percentage points (95 %); None where the true classes are not known."""
        found = None if self.paired is None else self.paired.interval()
        return None if found is None else Interval(-100 * found.high, -100 * found.low)

    @property
    def agreement_interval(self) -> Interval:
        """Interval of `agreement`, in per cent (95 %)."""
        found = wilson_interval(round(self.agreement / 100 * self.images), self.images)
        return Interval(100 * found.low, 100 * found.high)


@dataclass(frozen=True, kw_only=True)
class SetDrift(Drift):
    """The same of models with several labels per image: `agreement` is of images with the same label set."""

    float_map: float | None = None  # these: where the true labels are known, in per cent
    map: float | None = None  # mean average precision over the classes that an image has
    map_drop: float | None = None  # percentage points lost
    drop_low: float | None = None  # its 95 % interval
    drop_high: float | None = None
    float_f1: float | None = None  # of all labels together
    f1: float | None = None
    figure: ClassVar[str] = "mAP"
    _field: ClassVar[str] = "map"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of report.json."""
        others = ("float_top1", "top1", "top1_drop", "lost", "gained")
        return {name: value for name, value in asdict(self).items() if name not in others}

    @property
    def drop_interval(self) -> Interval | None:
        """Interval of `drop` (95 %); None where the true labels are not known."""
        if self.drop_low is None or self.drop_high is None:
            return None
        return Interval(self.drop_low, self.drop_high)


def measure_drift(
    reference: Array,
    variant: Array,
    targets: Array | None = None,
    same_name: Array | None = None,
    thresholds: Sequence[float] | None = None,
) -> Drift:
    """Return the drift between the logits `[images, classes]` of the float model and of a variant.

    Args:
        reference: logits of the float model.
        variant: logits of the variant, for the same images.
        targets: the true classes, `int64 [images]`, or label sets, bool `[images, classes]`; None leaves out
            the figures of top-1 or mAP.
        same_name: for each class the first class of the same name, `int64 [classes]`, where any class of the
            true name is right; None where only the true class itself is.
        thresholds: one per class, of models with several labels per image, which give a `SetDrift`.

    Raises:
        ValueError: for no images, or shapes that differ.
    """
    if reference.shape != variant.shape or len(reference) == 0:
        raise ValueError(f"expected logits of the same images, found {reference.shape} and {variant.shape}")
    of_float, of_variant = (predict_answers(each, thresholds) for each in (reference, variant))
    common: dict[str, Any] = dict(
        images=len(reference),
        agreement=100 * float(1 - np.mean(differ(of_float, of_variant))),
        sqnr=sqnr(reference, variant),
        max_error=float(np.abs(reference - variant).max()),
    )
    if thresholds is not None:
        if targets is None or not targets.any():
            return SetDrift(**common)
        old, new = (100 * float(average_precisions(each, targets).mean()) for each in (reference, variant))
        interval = interval_of_drop(reference, variant, targets)
        common |= {"float_map": old, "map": new, "map_drop": old - new}
        common |= {"drop_low": 100 * interval.low, "drop_high": 100 * interval.high}
        old_f1, new_f1 = (100 * measure_f1(each, targets) for each in (of_float, of_variant))
        return SetDrift(**common, float_f1=old_f1, f1=new_f1)
    if targets is None:
        return Drift(**common)
    names = np.arange(reference.shape[1]) if same_name is None else same_name
    before, after = (names[found] == names[targets] for found in (of_float, of_variant))
    paired = Paired.of(before, after)
    old, new = (100 * float(np.mean(right)) for right in (before, after))
    counts = {"lost": paired.lost, "gained": paired.gained}
    return Drift(**common, float_top1=old, top1=new, top1_drop=old - new, **counts)


def sqnr(reference: Array, variant: Array) -> float:
    """Return the signal-to-quantization-noise ratio in dB.

    Args:
        reference: logits, `[images, classes]`.
        variant: those of another model on the same images.
    """
    exact = reference.astype(np.float64)
    return to_decibels(float(np.square(exact).sum()), float(np.square(exact - variant).sum()))


def to_decibels(signal: float, noise: float) -> float:
    """Return 10 · log10(signal / noise) of two energies; 200 stands for no difference at all."""
    if noise == 0:
        return MOST_DECIBELS
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -MOST_DECIBELS, MOST_DECIBELS))
