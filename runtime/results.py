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
    score: float  # the softmax probability, 0 to 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a classifier for one image."""

    label: str | None  # None, as the index, where the score is below `min_score`
    index: int | None
    score: float
    top: tuple[Candidate, ...]  # best first, the prediction itself included


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
) -> Prediction:
    """Return the prediction for the logits of one image, float32 [classes], with `top` candidates.

    `temperature` divides the logits before softmax; it changes scores and never their order. Below
    `min_score` the prediction has no label and no index.

    Raises:
        ImageError: when a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ImageError("the model's answer to it is not finite")
    order = np.argsort(-logits, kind="stable")[:top]
    powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    scores = powers[order] / powers.sum()
    best = tuple(Candidate(labels[i], int(i), float(score)) for i, score in zip(order, scores, strict=True))
    if min_score is not None and best[0].score < min_score:
        return Prediction(None, None, best[0].score, best)
    return Prediction(best[0].label, best[0].index, best[0].score, best)


def explain_unsure(prediction: Prediction, min_score: float | None) -> str | None:
    """Return why a prediction has no label, given the classifier's `min_score`; None where it has one."""
    if prediction.label is not None:
        return None
    digits = 2  # and more where the rounded score would reach the minimum
    while digits < 6 and float(f"{prediction.score:.{digits}f}") >= (min_score or 0):
        digits += 1
    return f"unsure (score {prediction.score:.{digits}f}, minimum {min_score:g})"
