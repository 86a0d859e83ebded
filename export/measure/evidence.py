"""Doubts about an export's own evidence: images that cannot show what their figures seem to say."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from calibration.graph import Array
from calibration.measure.clipping import Clipped
from calibration.search import Budget
from export.measure.statistics import CONFIDENCE, Paired, wilson
from runtime.text import counted
from vit.data.digests import digests
from vit.data.images import Images
from vit.data.public import public_name

ALIKE = 4.0  # of 255: the mean difference of two images' thumbnails below which they show the same
CLIPPED = 0.001  # of a layer's activations: a range that was made for other images
THUMBNAIL = 8  # pixels along an edge
LEAST_ROOM = 0.0001  # of the images: no number of them shows a limit of exactly 100 %
MOST_IMAGES = 1_000_000  # where the number that a limit takes is not counted any further


@dataclass(frozen=True)
class Evidence:
    """Facts that the judgment needs."""

    calibration: Images | None  # None with a plan that was given
    evaluation: Images
    search: Images | None
    targets: Array | None  # int64 [images]
    labels: tuple[str, ...]
    logits: Array  # of float32 on the evaluation images, float32 [images, classes]
    variant: Array | None  # of int8
    budget: Budget
    trained_on: Collection[str] = ()  # digests of the images that the model was trained on
    clipped: Mapping[str, Clipped] | None = None


@dataclass(frozen=True)
class Doubt:
    """One thing that a reader must know before the figures are believed."""

    sentence: str
    limits: tuple[str, ...] = ()  # fields of `Budget` that cannot be judged because of it


def doubts(evidence: Evidence, pixels: Iterable[Array]) -> tuple[Doubt, ...]:
    """Return the doubts about the evidence of an export, each with the limits that it leaves open.

    Args:
        evidence: the images, logits and limits.
        pixels: calibration images as the model sees them, `uint8 [H, W, 3]`; a few dozen are enough.
    """
    budget, logits, variant = evidence.budget, evidence.logits, evidence.variant
    trained_on = _known_by_heart(evidence, "measured on", evidence.evaluation)
    found = [
        Doubt(_alike(list(pixels))),
        Doubt(_exceeded(evidence)),
        Doubt(_near_chance(evidence), ("max_drift",)),
        Doubt(trained_on, ("max_drift",)),
        Doubt(_in_training_folder("measured on", evidence.evaluation) if not trained_on else ""),
        Doubt(_known_by_heart(evidence, "searched on", evidence.search)),
        Doubt(_in_training_folder("searched on", evidence.search)),
        Doubt(too_few(budget, logits, variant, evidence.targets), ("max_drift",)),
        Doubt(too_few_for_agreement(budget, logits, variant), ("min_agreement",)),
    ]
    return tuple(each for each in found if each.sentence)


def _alike(pixels: list[Array]) -> str:
    if len(pixels) < 2:
        return ""
    small = np.stack([_thumbnail(each) for each in pixels])
    spread = float(np.abs(small - small.mean(axis=0)).mean())
    if spread >= ALIKE:
        return ""
    return (
        f"the calibration images are all alike (mean difference {spread:.1f} of 255, expected {ALIKE:.0f} or "
        "more): ranges made from them will not fit others; give images like those the model will meet"
    )


def _thumbnail(pixels: Array) -> Array:
    """Return the mean colors of a grid of cells, float64 [cells, cells, 3]."""
    rows, columns = (np.array_split(np.arange(edge), min(THUMBNAIL, edge)) for edge in pixels.shape[:2])
    means = [[pixels[np.ix_(row, column)].mean(axis=(0, 1)) for column in columns] for row in rows]
    return np.asarray(means)


def _exceeded(evidence: Evidence) -> str:
    beyond = {name: each for name, each in (evidence.clipped or {}).items() if each.share > CLIPPED}
    if not beyond:
        return ""
    name, worst = max(beyond.items(), key=lambda item: item[1].share)
    where = ", ".join(evidence.evaluation.public_name(index) for index in worst.images)
    return (
        f"the evaluation images exceed what calibration saw in {counted(len(beyond), 'layer')} "
        f"(limit: {100 * CLIPPED:g} % of the activations), most in {name} ({100 * worst.share:.2f} %; "
        f"images: {where}); calibrate with images like these"
    )


def _near_chance(evidence: Evidence) -> str:
    if evidence.targets is None or len(evidence.labels) < 2:
        return ""
    guesses, classes = evidence.logits.argmax(axis=1), len(evidence.labels)
    hits = int((guesses == evidence.targets).sum())
    if wilson(hits, len(guesses)).low > 1 / classes:
        return ""
    advice = "are the labels in the order that the model was trained with?"
    for shift in (1, -1):
        shifted = int((guesses == evidence.targets + shift).sum())
        if wilson(shifted, len(guesses)).low > max(2 / classes, hits / len(guesses)):
            share = 100 * shifted / len(guesses)
            advice = f"with class indices shifted by {shift:+d} it is {share:.1f} %: {advice}"
    return (
        f"the float model itself is right on {100 * hits / len(guesses):.1f} % of the images, no better than "
        f"chance ({100 / classes:.1f} %); {advice}"
    )


def _known_by_heart(evidence: Evidence, what: str, images: Images | None) -> str:
    if images is None or not len(images) or not evidence.trained_on:
        return ""
    known = sum(digest in evidence.trained_on for digest in digests(images))
    if not known:
        return ""
    return (
        f"the model was trained on {known:,} of the {counted(len(images), 'image')} {what}, so their "
        "top-1 is too good; give others (--evaluate, or another --calibration)"
    )


def _in_training_folder(what: str, images: Images | None) -> str:
    parts = () if images is None else Path(images.name).parts
    if images is None or not any(part.lower() in ("train", "training") for part in parts[-2:]):
        return ""
    where = public_name(images.name)
    return f"the images {what} lie in {where}: if the model was trained on them, their top-1 is too good"


def too_few(budget: Budget, float_logits: Array, variant: Array | None, targets: Array | None) -> str:
    """Return why these images cannot show that a limit on top-1 is kept, and how many can, or nothing."""
    if budget.max_drift is None or variant is None or targets is None:
        return ""
    right = float_logits.argmax(axis=1) == targets, variant.argmax(axis=1) == targets
    paired = Paired.of(*right)
    reach = 100 * (paired.interval().high - paired.difference)
    if reach <= max(budget.max_drift, 0.0):
        return ""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    discordant = max(paired.lost + paired.gained, 1) / paired.total
    needed = math.ceil(z * z * discordant / (max(budget.max_drift, 0.01) / 100) ** 2)
    images = counted(paired.total, "image")
    return (
        f"{images} cannot show a limit of {budget.max_drift:g} points: their top-1 is known to "
        f"±{reach:.1f} points; it takes about {max(needed, paired.total + 1):,} images with known classes"
    )


def too_few_for_agreement(budget: Budget, float_logits: Array, variant: Array | None) -> str:
    """Return why these images cannot show that enough labels stay, and how many can, or nothing."""
    if budget.min_agreement is None or variant is None:
        return ""
    total, same = len(variant), int((float_logits.argmax(axis=1) == variant.argmax(axis=1)).sum())
    room = max(1 - budget.min_agreement / 100, LEAST_ROOM)
    reach = same / total - wilson(same, total).low
    if reach <= room:
        return ""
    needed = total
    while needed < MOST_IMAGES and same / total - wilson(round(same / total * needed), needed).low > room:
        needed = math.ceil(1.05 * needed)
    return (
        f"{counted(total, 'image')} cannot show a limit of {budget.min_agreement:g} % of same labels: "
        f"their share is known to ±{100 * reach:.1f} points; it takes about {needed:,} images"
    )
