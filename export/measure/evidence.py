"""Doubts about an export's own evidence: images that cannot show what their figures seem to say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.per_layer import LayerClipping
from calibration.measure.statistics import wilson
from runtime.text import format_count
from vit.data.datasets import Images, describe_shared_names
from vit.data.public import public_name
from vit.data.training_images import digest_images

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
    trained_on: Collection[str] = ()  # digests of the images that the model was trained on
    clipped: Mapping[str, LayerClipping] | None = None


@dataclass(frozen=True)
class Doubt:
    """One thing that a reader must know before the figures are believed."""

    sentence: str
    limits: tuple[str, ...] = ()  # options whose limits cannot be judged because of it


def doubts(evidence: Evidence, pixels: Iterable[Array]) -> tuple[Doubt, ...]:
    """Return the doubts about the evidence of an export, each with the limits that it leaves open.

    Args:
        evidence: the images, logits and limits.
        pixels: calibration images as the model sees them, `uint8 [H, W, 3]`; a few dozen are enough.
    """
    trained_on = _known_by_heart(evidence)
    measured = ("--max-drift",) if "measured on" in trained_on else ()
    found = [
        Doubt(_alike(list(pixels))),
        Doubt(_exceeded(evidence)),
        Doubt(_near_chance(evidence), ("--max-drift",)),
        Doubt(trained_on, measured),
        Doubt(_in_training_folder(evidence) if not trained_on else ""),
        Doubt(describe_shared_names(evidence.evaluation)),
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
        f"the evaluation images exceed what calibration saw in {format_count(len(beyond), 'layer')} "
        f"(limit: {100 * CLIPPED:g} % of the activations), most in {name} ({100 * worst.share:.2f} %; "
        f"images: {where}); calibrate with images like these"
    )


def _near_chance(evidence: Evidence) -> str:
    if evidence.targets is None or len(evidence.labels) < 2:
        return ""
    guesses, classes = evidence.logits.argmax(axis=1), len(evidence.labels)
    hits = int((evidence.evaluation.settle(guesses) == evidence.targets).sum())
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


def _known_by_heart(evidence: Evidence) -> str:
    if not evidence.trained_on:
        return ""
    found, options = [], []
    for what, images in _judging(evidence):
        known = sum(digest in evidence.trained_on for digest in digest_images(images))
        if known:
            found.append(f"{known:,} of the {format_count(len(images), 'image')} {what}")
            # Those that a search uses come from the images of calibration.
            options.append("--evaluate" if what == "measured on" else "another --calibration")
    if not found:
        return ""
    return (
        f"the model was trained on {' and '.join(found)}, so their top-1 is too good; give others "
        f"({', '.join(options)})"
    )


def _in_training_folder(evidence: Evidence) -> str:
    found: dict[str, list[str]] = {}
    for what, images in _judging(evidence):
        parts = Path(images.name).parts
        if any(part.lower() in ("train", "training") for part in parts[-2:]):
            found.setdefault(public_name(images.name), []).append(what)
    if not found:
        return ""
    where = "; ".join(f"{' and '.join(what)} lie in {place}" for place, what in found.items())
    return f"the images {where}: if the model was trained on them, their top-1 is too good"


def _judging(evidence: Evidence) -> list[tuple[str, Images]]:
    """Return the images that judge the model, and what they do."""
    both = ("measured on", evidence.evaluation), ("searched on", evidence.search)
    return [(what, images) for what, images in both if images is not None and len(images)]
