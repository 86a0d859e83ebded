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
from export.images import public_name
from export.measure.statistics import CONFIDENCE, Paired, wilson
from vit.data.digests import digests
from vit.data.images import Images

ALIKE = 4.0  # of 255: the mean difference of two images' thumbnails below which they show the same
CLIPPED = 0.001  # of a layer's activations: a range that was made for other images
THUMBNAIL = 8  # pixels along an edge


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


def doubts(evidence: Evidence, pixels: Iterable[Array]) -> tuple[str, ...]:
    """Return what a reader must know before the figures are believed, a sentence each.

    Args:
        evidence: the images, logits and limits.
        pixels: calibration images as the model sees them, `uint8 [H, W, 3]`; a few dozen are enough.
    """
    found = [
        _alike(list(pixels)),
        _exceeded(evidence),
        _near_chance(evidence),
        _known_by_heart(evidence, "measured on", evidence.evaluation),
        _known_by_heart(evidence, "searched on", evidence.search),
        too_few(evidence.budget, evidence.logits, evidence.variant, evidence.targets),
    ]
    return tuple(sentence for sentence in found if sentence)


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
    where = ", ".join(Path(evidence.evaluation.describe(index)).name for index in worst.images)
    return (
        f"the evaluation images exceed what calibration saw in {len(beyond)} layers (limit: {CLIPPED:.1%} of "
        f"the activations), most in {name} ({worst.share:.2%}; images: {where}); calibrate with images like "
        "these"
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
    if images is None or not len(images):
        return ""
    known = sum(digest in evidence.trained_on for digest in digests(images)) if evidence.trained_on else 0
    if known:
        return (
            f"{known} of the {len(images)} images {what} are images that the model was trained on, so their "
            "top-1 is too good; give others (--evaluate, or another --calibration)"
        )
    parts = Path(images.name).parts
    if any(part.lower() in ("train", "training") for part in parts[-2:]):
        where = public_name(images.name)
        return f"the images {what} lie in {where}: if the model was trained on them, their top-1 is too good"
    return ""


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
    return (
        f"{paired.total} images cannot show a limit of {budget.max_drift:g} points: their top-1 is known to "
        f"±{reach:.1f} points; it takes about {max(needed, paired.total + 1):,} images with known classes"
    )
