"""Scores that mean what they say: one temperature, and how far scores are from the share that is right.

One number that the logits are divided by before softmax (Guo et al., arXiv 1706.04599). It changes no label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from calibration.graph.edit import Array

BINS = 15
FEWEST = 100  # images with known classes
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Reliability:
    """The temperature of an export, and the expected calibration error (ECE) of each variant, 0 to 1."""

    temperature: float  # fitted on all images
    images: int
    before: dict[str, float]  # ECE by variant, at temperature 1
    after: dict[str, float]  # the same, each half of the images with the temperature of the other half

    @property
    def helps(self) -> bool:
        """Return whether the temperature lowers the error of every variant, by a tenth of a point or more."""
        return all(round(self.after[name], 3) < round(self.before[name], 3) for name in self.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "temperature": self.temperature,
            "images": self.images,
            "ece_before": self.before,
            "ece_after": self.after,
        }


def measure_reliability(
    logits: dict[str, Array], targets: Array | None, same_name: Array | None = None
) -> Reliability | None:
    """Fit a temperature on all images, and judge it crosswise: each half by the fit of the other half.

    Args:
        logits: float32 [images, classes] by variant; "float32" decides the temperature.
        targets: int64 [images], or None where the classes are not known.
        same_name: int64 [classes], as `measure_drift` takes it.

    Returns:
        None without known classes, or with fewer than 100 images.
    """
    if targets is None or len(targets) < FEWEST:
        return None
    order = np.random.default_rng(0).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]  # every class goes to both halves
    halves = order[::2], order[1::2]
    crossed = np.ones((len(targets), 1))
    for fit, judge in (halves, halves[::-1]):
        crossed[judge] = fit_temperature(logits["float32"][fit], targets[fit], same_name)
    return Reliability(
        temperature=fit_temperature(logits["float32"], targets, same_name),
        images=len(targets),
        before={name: expected_error(rows, targets, same_name) for name, rows in logits.items()},
        after={name: expected_error(rows / crossed, targets, same_name) for name, rows in logits.items()},
    )


def fit_temperature(logits: Array, targets: Array, same_name: Array | None = None) -> float:
    """Return the temperature with the least negative log-likelihood, three decimals, 0.05 to 20.

    Args:
        logits: float [images, classes].
        targets: int64 [images].
        same_name: int64 [classes], where the score of the true class is that of all classes of its name.
    """
    rows = np.arange(len(targets))
    others = None if same_name is None else same_name[None, :] != same_name[targets][:, None]

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        if others is None:
            own = scaled[rows, targets]
        else:
            own = logsumexp(np.where(others, -np.inf, scaled), axis=1)
        return float((np.log(np.exp(scaled).sum(axis=1)) - own).mean())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(found.x)), 3)


def expected_error(logits: Array, targets: Array, same_name: Array | None = None) -> float:
    """Return the expected calibration error with 15 equal bins of the score, 0 to 1.

    Args:
        logits: float [images, classes], divided by the temperature.
        targets: int64 [images].
        same_name: int64 [classes], as `measure_drift` takes it.
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores = shifted.max(axis=1) / shifted.sum(axis=1)
    names = np.arange(logits.shape[1]) if same_name is None else same_name
    right = names[logits.argmax(axis=1)] == names[targets]
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [abs(float(scores[bins == each].sum() - right[bins == each].sum())) for each in range(BINS)]
    return sum(gaps) / len(targets)
