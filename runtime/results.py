"""Predictions: the classes with the highest logits of an image, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from .errors import ImageError
from .images.decode import ImageSource

if TYPE_CHECKING:
    import numpy.typing as npt

P = TypeVar("P", bound=ImageSource)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class and its score."""

    label: str
    index: int  # into `info.labels`; labels need not be unique, indices are
    score: float  # 0 to 1, by softmax; with several labels per image the sigmoid of its logit


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a classifier for one image."""

    label: str | None  # None, as the index, where no score reaches `min_score` or its threshold
    index: int | None
    score: float
    top: tuple[Candidate, ...]  # best first, the prediction itself included
    # Of a model with several labels per image: those whose score reaches its threshold, best first; the first
    # is the label. Without any, the score is the highest of all. None: the model gives one label per image.
    labels: tuple[Candidate, ...] | None = None


@dataclass(frozen=True, slots=True)
class Result(Generic[P]):
    """One image of a stream: a prediction, or the reason why there is none, or why it has no label."""

    image: P  # as it was given
    prediction: Prediction | None
    error: str | None


def make_prediction(
    logits: npt.NDArray[np.float32],
    labels: Sequence[str],
    top: int,
    temperature: float = 1.0,
    min_score: float | None = None,
    thresholds: Sequence[float] | None = None,
) -> Prediction:
    """Return the prediction for the logits of one image, float32 [classes], with `top` candidates.

    `temperature` divides the logits before softmax; it changes scores and never their order. Below
    `min_score` the prediction has no label and no index. With `thresholds`, one per class, the image has
    several labels, and both are left aside.

    Raises:
        ImageError: when a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ImageError("the model's answer to it is not finite")
    order = np.argsort(-logits, kind="stable")
    if thresholds is not None:
        with np.errstate(over="ignore"):  # 1 / infinity is 0
            scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        ranked = tuple(Candidate(labels[i], int(i), float(scores[i])) for i in order)
        reached = tuple(each for each in ranked if each.score >= thresholds[each.index])
        if not reached:
            return Prediction(None, None, ranked[0].score, ranked[:top], ())
        return Prediction(reached[0].label, reached[0].index, reached[0].score, ranked[:top], reached)
    powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    scores = powers[order[:top]] / powers.sum()
    best = tuple(Candidate(labels[i], int(i), float(s)) for i, s in zip(order, scores, strict=False))
    if min_score is not None and best[0].score < min_score:
        return Prediction(None, None, best[0].score, best)
    return Prediction(best[0].label, best[0].index, best[0].score, best)


def explain_unsure(prediction: Prediction, min_score: float | None) -> str | None:
    """Return why a prediction has no label, given the classifier's `min_score`; None where it has one."""
    if prediction.label is not None or prediction.labels is not None:
        return None
    digits = 2  # and more where the rounded score would reach the minimum
    while digits < 6 and float(f"{prediction.score:.{digits}f}") >= (min_score or 0):
        digits += 1
    return f"unsure (score {prediction.score:.{digits}f}, minimum {min_score:g})"
