"""Several labels per image: label sets, mean average precision, F1, and what chance leaves open of a drop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.statistics import Interval

RESAMPLES = 200
Z = 1.96  # of a 95 % interval


def predict_answers(logits: Array, thresholds: Sequence[float] | None) -> Array:
    """Return the class of each image, int64 [images]; with thresholds label sets, bool [images, classes].

    Args:
        logits: float32 [images, classes].
        thresholds: one per class, of the sigmoid of its logit, as the runtime takes them.
    """
    if thresholds is None:
        return np.asarray(logits.argmax(axis=1))
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))) >= np.asarray(thresholds))


def differ(first: Array, second: Array) -> Array:
    """Return on which images two answers are not the same, bool [images].

    Args:
        first: classes or label sets, as `predict_answers` returns them.
        second: of the same images.
    """
    return np.asarray(np.not_equal(first, second).reshape(len(first), -1).any(axis=1))


def average_precisions(logits: Array, targets: Array, weights: Array | None = None) -> Array:
    """Return the average precision of each class that an image has, of each resample, [resamples, classes].

    Equal logits count together. NaN where no image of a resample has the class.

    Args:
        logits: float32 [images, classes].
        targets: bool [images, classes]; classes without an image are left out.
        weights: how often each image counts, [resamples, images]; None counts each once.
    """
    counts = np.ones((1, len(logits))) if weights is None else weights
    found = []
    for scores, truth in zip(logits.T, targets.T, strict=True):
        if truth.any():
            order = np.argsort(-scores, kind="stable")
            last = len(order) - 1 - np.searchsorted(scores[order][::-1], scores[order], side="left")
            taken = counts[:, order]
            own = taken * truth[order]
            hits, total = own.cumsum(axis=1), taken.cumsum(axis=1)
            with np.errstate(invalid="ignore"):
                precision = hits[:, last] / np.maximum(total[:, last], 1)
                found.append((own * precision).sum(axis=1) / hits[:, -1])
    return np.stack(found, axis=1)


def measure_f1(found: Array, targets: Array) -> float:
    """Return the F1 of all labels together, 0 to 1; 1 without any.

    Args:
        found: bool [images, classes].
        targets: the true ones.
    """
    total = int(found.sum()) + int(targets.sum())
    return 2 * int((found & targets).sum()) / total if total else 1.0


def interval_of_drop(reference: Array, variant: Array, targets: Array) -> Interval:
    """Return the 95 % interval of the mean average precision that a variant loses, -1 to 1.

    Its width is that of a paired bootstrap over the images, and, since that claims certainty where no image
    changes its rank, at least what the score interval of a share has then: z² / (images + z²).

    Args:
        reference: logits of the float model, [images, classes].
        variant: logits of the variant.
        targets: bool [images, classes]; at least one label.
    """
    images = len(targets)
    random = np.random.default_rng(0)
    weights = random.multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(np.float64)
    before, after = (average_precisions(each, targets, weights) for each in (reference, variant))
    known = ~np.isnan(before).all(axis=1)
    drops = np.nanmean((before - after)[known], axis=1)
    drop = float(np.mean(average_precisions(reference, targets) - average_precisions(variant, targets)))
    reach = math.hypot(Z * float(drops.std()), Z**2 / (images + Z**2))
    return Interval(drop - reach, drop + reach)
