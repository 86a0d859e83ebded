"""Predictions: the best classes of the logits of an image, with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from runtime.decode import ImageError, ImageSource

if TYPE_CHECKING:
    import numpy.typing as npt

P = TypeVar("P", bound="ImageSource")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One class that an image may belong to."""

    label: str
    index: int  # into `info.labels`; labels need not be unique, indices are
    score: float  # the softmax probability, 0 to 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer of a model for one image."""

    label: str
    index: int
    score: float
    top: tuple[Candidate, ...]  # best first, the prediction itself included


@dataclass(frozen=True, slots=True)
class Result(Generic[P]):
    """One image of a stream: either a prediction, or why there is none."""

    image: P  # as it was given
    prediction: Prediction | None
    error: str | None


def prediction_of(
    logits: npt.NDArray[np.float32], labels: Sequence[str], top: int, temperature: float = 1.0
) -> Prediction:
    """Return the answer that is in the logits of one image.

    Args:
        logits: float32 [classes].
        labels: the name of each class.
        top: number of candidates to list.
        temperature: what the logits are divided by before softmax; it changes scores and never their order.

    Raises:
        ImageError: when a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ImageError("the model's answer to it is not finite")
    order = np.argsort(-logits, kind="stable")[:top]
    powers = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    scores = powers[order] / powers.sum()
    best = tuple(Candidate(labels[i], int(i), float(score)) for i, score in zip(order, scores, strict=True))
    return Prediction(best[0].label, best[0].index, best[0].score, best)
