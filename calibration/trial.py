"""Error that a way to quantize a tensor causes in the output of the weights that read it.

One scale per tensor competes with one scale per token (ZeroQuant, arXiv 2206.01861), and with hidden features
in float (`calibration.split`). The mean error of the output is subtracted by the bias (Nagel et al., arXiv
1906.04721, section 4.2).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from calibration.graph.edit import Array
from calibration.observe import Extremes, Observation, RowStatistics
from calibration.plan import Range
from calibration.ranges import RULES, Histogram
from calibration.weights import quantize_weight
from runtime.model_file.targets import Target

CORRECTION_ROWS = 256  # their mean is known well enough, and a product of them takes a third of the time
CORRECTION_GAIN = 0.1  # share of the error's energy that a correction must take away
FLOORS = (0.0, 0.1, 0.25, 0.5, 0.75)  # quantiles of the rows' peaks
GELU_LEAST = -0.1701  # the minimum of x · Φ(x) is -0.16997, of its tanh form -0.17004


@dataclass(frozen=True)
class Choice:
    """A way to quantize a tensor for its readers: one scale for all rows, or one per row."""

    error: float  # energy of the output's error on the held-out images
    input: Range  # of the tensor, or of its rows in units of their peaks
    rule: str  # how the range was chosen; "exact" with one scale per row
    per_token: float | None = None  # the smallest peak that a row is divided by; None for one scale for all
    columns: tuple[int, ...] = ()  # features that are multiplied in float


class Trial:
    """Compare the ways to quantize one tensor, divided by its scales, by the output of its readers."""

    def __init__(
        self, observation: Observation, weight: Array, scales: Array, target: Target, *, gelu: bool
    ) -> None:
        self.observation, self.scales, self.gelu = observation, scales, gelu
        self.weight = weight.astype(np.float32)
        stored, scale = quantize_weight(self.weight, target)
        self.rounded = stored * scale
        self.judged, self.weights = _weigh_rows(observation)
        self.judged = self.judged / scales
        self.exact = self.judged @ self.weight

    def choose_per_tensor(
        self, columns: tuple[int, ...] = (), rules: Collection[str] = tuple(RULES)
    ) -> Choice:
        """Return the rule with the least error for one scale, where `columns` are multiplied in float."""
        fit, rest = self.observation.fit, self._other_columns(columns)
        histogram, bounds = self._histogram(rest, fit), self._bounds(fit.extremes, rest)
        ranges = {rule: Range.of(*RULES[rule](histogram, *bounds)) for rule in rules}
        choices = [self._judge(Choice(0.0, each, rule, columns=columns)) for rule, each in ranges.items()]
        return min(choices, key=lambda choice: choice.error)

    def choose_per_token(self, columns: tuple[int, ...] = ()) -> Choice:
        """Return the smallest peak with the least error for one scale per row, `columns` multiplied in float.

        Behind a GELU the range reaches down to the function's minimum over the smallest peak that a row is
        divided by: one row of small values would spend a quarter of the levels on it. So a few smallest peaks
        compete, and rows below the chosen one share its scale.
        """
        peaks = self._peaks((self.observation.fit.rows / self.scales)[:, self._other_columns(columns)])
        if not self.gelu:
            floor = max(float(peaks.max()) * 1e-4, 1e-6)
            return self._judge(Choice(0.0, Range.of(-1.0, 1.0), "exact", floor, columns))
        floors = [max(float(floor), 1e-6) for floor in np.quantile(peaks, FLOORS)]
        choices = [Choice(0.0, Range.of(GELU_LEAST / each, 1.0), "exact", each, columns) for each in floors]
        return min(map(self._judge, choices), key=lambda choice: choice.error)

    def refit(self, choice: Choice) -> Choice:
        """Apply the same rule to all images, the held-out ones included."""
        if choice.per_token is not None:
            return choice
        rest = self._other_columns(choice.columns)
        histogram = self._histogram(rest, self.observation.fit, self.observation.held)
        bounds = RULES[choice.rule](histogram, *self._bounds(self.observation.all, rest))
        return replace(choice, input=Range.of(*bounds))

    def correct_bias(self, choice: Choice) -> Array | None:
        """Return minus the mean error of the output, `float32 [out]`; None where that lowers it too little.

        Nagel et al., section 4.2, with the mean measured on the calibration images.
        """
        fit = self.observation.fit.rows[:CORRECTION_ROWS] / self.scales
        shift = (fit @ self.weight - self._output(fit, choice)).mean(axis=0)
        error = self._output(self.judged, choice) - self.exact
        left, whole = (self._energy(each) for each in (error + shift, error))
        return np.asarray(shift, np.float32) if left < (1 - CORRECTION_GAIN) * whole else None

    def _judge(self, choice: Choice) -> Choice:
        return replace(choice, error=self._energy(self._output(self.judged, choice) - self.exact))

    def _energy(self, error: Array) -> float:
        """Return the energy of an error of the judged rows, `[rows, out]`, each row with its weight."""
        return float(self.weights @ np.square(error, dtype=np.float64).sum(axis=1))

    def _output(self, rows: Array, choice: Choice) -> Array:
        """Return the output of the linears for rows stored as the choice says, with int8 weights."""
        if choice.columns:
            rest, columns = self._other_columns(choice.columns), list(choice.columns)
            in_float = rows[:, columns] @ self.weight[columns]
            return np.asarray(self._integers(rows[:, rest], self.rounded[rest], choice) + in_float)
        return self._integers(rows, self.rounded, choice)

    def _integers(self, rows: Array, rounded: Array, choice: Choice) -> Array:
        """Return the product of the features that are quantized and their int8 weights."""
        if choice.per_token is None:
            return np.asarray(choice.input.fake_quantize(rows).astype(np.float32) @ rounded)
        peaks = np.maximum(self._peaks(rows), choice.per_token)
        units = choice.input.fake_quantize(rows / peaks).astype(np.float32)
        return np.asarray((units @ rounded) * peaks)

    def _other_columns(self, columns: tuple[int, ...]) -> Array:
        """Return which features are quantized, `bool [features]`."""
        return np.isin(np.arange(len(self.weight)), columns, invert=True)

    def _histogram(self, rest: Array, *parts: RowStatistics) -> Histogram:
        histogram = Histogram()
        for part in parts:
            histogram.update((part.rows / self.scales)[:, rest])
        return histogram

    def _bounds(self, extremes: Extremes, rest: Array) -> tuple[float, float]:
        low, high = extremes.low / self.scales, extremes.high / self.scales
        return float(low[rest].min()), float(high[rest].max())

    def _peaks(self, rows: Array) -> Array:
        """Return each row's largest magnitude, `[rows, 1]`; after GELU that is its largest value."""
        return np.asarray((rows if self.gelu else np.abs(rows)).max(axis=1, keepdims=True))


def _weigh_rows(observation: Observation) -> tuple[Array, Array]:
    """Return the rows that judge, and how much the error of each counts, `float64 [rows]`.

    The rows of the class token count as much as all others together. In a ViT-B/16 one of them moves the
    logits 70 (first block) to 1,200 times (block 8) as much as one of the 196 patches, by the same error.
    """
    rows = observation.judged.rows
    first = observation.class_token.rows if observation.class_token is not None else rows[:0]
    weights = np.ones(len(rows) + len(first))
    weights[len(rows) :] = len(rows) / max(len(first), 1)
    return np.concatenate([rows, first]), weights
