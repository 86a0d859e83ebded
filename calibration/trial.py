"""Error that a way to quantize a tensor causes in the output of the weights that read it.

One scale per tensor competes with one scale per token (ZeroQuant, arXiv 2206.01861), and with hidden features
in float (`calibration.split`).
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

RATIOS = tuple(float(each) for each in np.round(np.linspace(0.9, 1.06, 17), 2))
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
        self.observation, self.scales, self.target, self.gelu = observation, scales, target, gelu
        self.weight = weight.astype(np.float32)
        stored, scale = quantize_weight(self.weight, target)
        self.rounded = stored * scale
        self.judged, self.weights = observation.weigh_judged()
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

    def choose_ratios(self, choice: Choice) -> tuple[float, ...]:
        """Choose a scale for the weights of each output channel.

        Each scale rounds all weights of a channel in another way. Of 17 scales near the smallest one that
        holds them all, take the one with the least error of the output, less its mean, which the bias can
        take away.

        Returns:
            for each output, its scale over that of `quantize_weight`; empty where the held-out images do not
            confirm the choice.
        """
        rest = self._other_columns(choice.columns)
        rows, weights = self.observation.weigh_fit()
        rows, weight = (rows / self.scales)[:, rest], self.weight[rest]
        # For "any-cpu" a smaller scale would let pairs of weights exceed their limit.
        ratios = [1.0, *(each for each in RATIOS if each > 1 or self.target == "full-range")]
        energies = []
        for ratio in ratios:
            stored, scale = quantize_weight(weight, self.target, ratio=ratio)
            error = rows @ (stored * scale - weight)
            error -= np.average(error, axis=0, weights=weights).astype(np.float32)
            energies.append(weights @ np.square(error, dtype=np.float64))
        best = np.array(ratios)[np.argmin(energies, axis=0)]
        spreads = [self._spread(choice, ratio) for ratio in (best, 1.0)]
        return tuple(best.tolist()) if spreads[0] < spreads[1] else ()

    def _spread(self, choice: Choice, ratio: Array | float) -> float:
        """Return the energy of the output's error on the judged rows, less its mean."""
        rest = self._other_columns(choice.columns)  # those in float have no error
        rows, weight = self.judged[:, rest], self.weight[rest]
        stored, scale = quantize_weight(weight, self.target, ratio=ratio)
        error = self._integers(rows, stored * scale, choice) - rows @ weight
        return self._energy(error - np.average(error, axis=0, weights=self.weights))

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
