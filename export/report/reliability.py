"""Reliability of the scores: the temperature, and the distance of scores from the share that is right.

The temperature is one number that the logits are divided by before softmax (Guo et al., arXiv 1706.04599). It
changes no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from calibration.graph.edit import Array
from export.measure.inference import Run, top1
from export.report.number_formats import percent
from export.report.section import Results, Section
from runtime.text import format_count

BINS = 15
FEWEST_IMAGES = 100  # with known classes
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Reliability(Section):
    """The temperature of an export, and the expected calibration error (ECE) of each variant, 0 to 1."""

    temperature: float  # fitted on all images
    images: int
    before: dict[str, float]  # ECE by variant, at temperature 1
    after: dict[str, float]  # the same, each half of the images with the temperature of the other half
    template = "reliability.j2"

    @classmethod
    def measure(cls, run: Run) -> Reliability | None:
        """Fit the temperature of float32; None without known classes, or with fewer than 100 images.

        None too where an image has several labels: their thresholds are of scores at temperature 1.
        """
        if run.source.thresholds is not None:
            return None
        logits: dict[str, Array] = {each.variant: run.logits[each.variant] for each in run.variants}
        return measure_reliability(logits, *run.images.evaluation.truth)

    @property
    def helps(self) -> bool:
        """True if the temperature lowers the error of every variant, by a tenth of a point or more."""
        return all(round(self.after[name], 3) < round(self.before[name], 3) for name in self.after)

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return temperature and errors."""
        document = {"temperature": self.temperature, "images": self.images}
        return {"reliability": {**document, "ece_before": self.before, "ece_after": self.after}}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the effect of the temperature on the scores."""
        errors = ", ".join(
            f"{name} {100 * self.before[name]:.1f} → {percent(100 * after, 1)}"
            for name, after in self.after.items()
        )
        return [
            f"scores: temperature {self.temperature:g}; expected calibration error {errors} "
            f"(on {format_count(self.images, 'image')}, each half with the temperature of the other)"
        ]


def measure_reliability(
    logits: dict[str, Array], targets: Array | None, same_name: Array | None = None
) -> Reliability | None:
    """Fit a temperature on all images, and judge it crosswise: each half by the fit of the other half.

    Logits are float32 [images, classes] by variant; "float32" decides the temperature. Targets are int64
    [images], or None where the classes are not known.
    """
    if targets is None or len(targets) < FEWEST_IMAGES:
        return None
    order = np.random.default_rng(0).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]  # every class goes to both halves
    halves, truth = (order[::2], order[1::2]), (targets, same_name)
    other_half = np.ones((len(targets), 1))  # temperatures
    for fit, judge in (halves, halves[::-1]):
        other_half[judge] = fit_temperature(logits["float32"][fit], targets[fit], same_name)
    return Reliability(
        temperature=fit_temperature(logits["float32"], *truth),
        images=len(targets),
        before={name: calibration_error(rows, *truth) for name, rows in logits.items()},
        after={name: calibration_error(rows / other_half, *truth) for name, rows in logits.items()},
    )


def fit_temperature(logits: Array, targets: Array, same_name: Array | None = None) -> float:
    """Return the temperature with the least negative log-likelihood, three decimals, 0.05 to 20.

    Logits are float [images, classes]; with `same_name`, int64 [classes], the score of the true class is
    that of all classes of its name.
    """
    rows = np.arange(len(targets))
    others = None if same_name is None else same_name[None, :] != same_name[targets][:, None]

    def loss(log_temperature: float) -> float:
        divided = logits.astype(np.float64) / np.exp(log_temperature)
        own = divided[rows, targets]
        if others is not None:
            own = logsumexp(np.where(others, -np.inf, divided), axis=1)
        return float((logsumexp(divided, axis=1) - own).mean())

    bounds = (float(np.log(LOWEST)), float(np.log(HIGHEST)))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(found.x)), 3)


def calibration_error(logits: Array, targets: Array, same_name: Array | None = None) -> float:
    """Return the expected calibration error with 15 equal bins of the score, from 0 to 1."""
    classes, scores = top1(logits)
    names = np.arange(logits.shape[1]) if same_name is None else same_name
    right = names[classes] == names[targets]
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = [abs(float(scores[bins == each].sum() - right[bins == each].sum())) for each in range(BINS)]
    return sum(gaps) / len(targets)
