"""From what was observed to a plan: each choice by what it does to the layer's own output.

Candidates are fitted to three quarters of the calibration pictures and judged on the others, so that a range
that leaves no room for a new picture loses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibration.balance import STRENGTHS, Group, find_groups, scales_for
from calibration.graph import Array
from calibration.observe import Extremes, Observation
from calibration.plan import (
    PROBABILITY,
    BalancePlan,
    LinearPlan,
    PlanError,
    ProductPlan,
    QuantizationPlan,
    Range,
    Target,
)
from calibration.ranges import RULES, Histogram
from calibration.sites import Linear, Sites
from calibration.split import hidden_of
from calibration.weights import rounded_weight

FLOAT_COLUMNS = 16  # hidden features that may be multiplied in float: under one per cent of an MLP's work
# How much a costlier form must gain on the layer's output, in dB, to be worth its time.
GAIN_OF_COLUMNS, GAIN_OF_TOKENS = 1.5, 1.0
CORRECTION_ROWS = 256
CORRECTION_GAIN = 0.1  # share of the error's energy
GELU_LEAST = -0.17  # the minimum of x · Φ(x) is -0.16997


@dataclass(frozen=True)
class Choice:
    """A way to quantise a tensor for its readers, and the error energy that makes on held pictures."""

    error: float
    input: Range
    rule: str
    per_token: float | None = None
    columns: tuple[int, ...] = ()


def decide(
    sites: Sites,
    observed: Mapping[str, Observation],
    *,
    target: Target,
    keep_float: Collection[str] = (),
    quantize_products: bool = False,
) -> QuantizationPlan:
    """A plan with every linear in int8 but those in `keep_float`; attention's two products are a choice.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
    """
    known = {**sites.linears, **sites.products}
    if unknown := sorted(set(keep_float) - set(known)):
        raise PlanError(f"no layer is called {', '.join(unknown)}; the graph has: {', '.join(known)}")
    decision = _Decision(sites, observed, target, frozenset(keep_float))
    products = decision.products(quantize_products)
    linears = decision.linears()
    return QuantizationPlan(target=target, linears=linears, products=products, balance=decision.balance)


class _Decision:
    def __init__(
        self, sites: Sites, observed: Mapping[str, Observation], target: Target, keep_float: frozenset[str]
    ) -> None:
        self.sites, self.observed, self.target, self.keep_float = sites, observed, target, keep_float
        self.balance: dict[str, BalancePlan] = {}

    def linears(self) -> dict[str, LinearPlan]:
        chosen: dict[str, LinearPlan] = {}
        for group in find_groups(self.sites):
            if kept := [each for each in group.linears if each.name not in self.keep_float]:
                chosen |= self._balanced(group, kept)
        for name, linear in self.sites.linears.items():
            if name in self.keep_float:
                chosen[name] = LinearPlan(precision="float32")
            elif linear.reads_pixels:
                chosen[name] = LinearPlan(precision="int8")
            elif name not in chosen:
                chosen[name] = self._alone(linear)
        for name, plan in chosen.items():
            hidden = hidden_of(self.sites, self.sites.linears[name]) if plan.float_columns else None
            if hidden is not None and chosen[hidden.first.name].correction:
                first = chosen[hidden.first.name]
                corrected = np.array(first.correction)
                corrected[list(plan.float_columns)] = (
                    0.0  # these are computed in float, there is nothing to correct
                )
                chosen[hidden.first.name] = replace(first, correction=_numbers(corrected))
        return {name: chosen[name] for name in self.sites.linears}

    def products(self, quantize: bool) -> dict[str, ProductPlan]:
        found = {}
        for name, product in self.sites.products.items():
            if not quantize or name in self.keep_float:
                found[name] = ProductPlan(precision="float32")
                continue
            left, right = (
                _min_max(self.observed[str(value.name)]) for value in (product.left, product.right)
            )
            if product.mixes_probabilities:
                left = PROBABILITY
            found[name] = ProductPlan(precision="int8", left=left, right=right)
        return found

    def _balanced(self, group: Group, linears: list[Linear]) -> dict[str, LinearPlan]:
        """One strength for all readers of a producer, then one range for each of the tensors they read."""
        tensors: dict[str, list[Linear]] = {}
        for linear in linears:
            tensors.setdefault(str(linear.input.name), []).append(linear)
        low, high = _extremes([self.observed[name].fit.extremes for name in tensors])
        errors = {}
        for strength in STRENGTHS:
            scales = scales_for(low, high, strength)
            trials = [self._trial(name, readers, scales) for name, readers in tensors.items()]
            errors[strength] = sum(trial.per_tensor(rules=("min-max", "margin")).error for trial in trials)
        strength = min(STRENGTHS, key=lambda each: errors[each])
        scales = scales_for(low, high, strength)
        choices = {name: self._choose(name, readers, scales) for name, readers in tensors.items()}
        if strength:
            low, high = _extremes([self.observed[name].all for name in tensors])
            scales = scales_for(low, high, strength)
            self.balance[group.name] = BalancePlan(strength=strength, scales=_numbers(scales))
        return {
            linear.name: self._plan(linear, choice, scales if strength else None)
            for name, choice in choices.items()
            for linear in tensors[name]
        }

    def _alone(self, linear: Linear) -> LinearPlan:
        ones = np.ones(linear.weight.shape[0], np.float32)
        return self._plan(linear, self._choose(str(linear.input.name), [linear], ones), None)

    def _choose(self, tensor: str, readers: list[Linear], scales: Array) -> Choice:
        """The best rule for a tensor divided by `scales`; a costlier form only where it gains enough."""
        trial = self._trial(tensor, readers, scales)
        best = trial.per_tensor()
        if len(readers) > 1 or not self._after_linear_map(readers[0]):
            return best
        if hidden_of(self.sites, readers[0]) is not None and len(scales) >= 8 * FLOAT_COLUMNS:
            high = self.observed[tensor].all.high
            columns = tuple(sorted(np.argsort(-high, kind="stable")[:FLOAT_COLUMNS].tolist()))
            split = trial.per_tensor(columns)
            if _gain(best, split) >= GAIN_OF_COLUMNS:
                best = split
        token = trial.per_token()
        return token if _gain(best, token) >= GAIN_OF_TOKENS else best

    def _trial(self, tensor: str, readers: list[Linear], scales: Array) -> _Trial:
        weight = np.concatenate([linear.weight for linear in readers], axis=1) * scales[:, None]
        gelu = self._after_gelu(readers[0])
        return _Trial(self.observed[tensor], weight, scales, self.target, gelu=gelu)

    def _after_gelu(self, linear: Linear) -> bool:
        above = linear.input.producer()
        return above is not None and above.op_type == "Gelu"

    def _after_linear_map(self, linear: Linear) -> bool:
        """LayerNormalization gives all rows one magnitude already: scales of their own would gain little."""
        above = linear.input.producer()
        return above is not None and above.op_type != "LayerNormalization"

    def _plan(self, linear: Linear, choice: Choice, scales: Array | None) -> LinearPlan:
        """The choice with its range fitted again to all pictures, and the bias correction where it helps."""
        ones = np.ones(linear.weight.shape[0], np.float32)
        trial = self._trial(str(linear.input.name), [linear], ones if scales is None else scales)
        final = trial.refit(choice)
        plan = LinearPlan(
            precision="int8",
            input=final.input,
            rule=final.rule,
            per_token=final.per_token,
            float_columns=final.columns,
        )
        correction = trial.correction(final)
        return plan if correction is None else replace(plan, correction=_numbers(correction))


class _Trial:
    """What does a form of one tensor, divided by its scales, cost the output of the weights that read it?"""

    def __init__(
        self, observation: Observation, weight: Array, scales: Array, target: Target, *, gelu: bool
    ) -> None:
        self.observation, self.scales, self.gelu = observation, scales, gelu
        self.weight = weight.astype(np.float32)
        self.rounded = rounded_weight(self.weight, target)
        self.judged = observation.judged.rows / scales
        self.exact = self.judged @ self.weight

    def per_tensor(self, columns: tuple[int, ...] = (), rules: Collection[str] = tuple(RULES)) -> Choice:
        rest = self._rest(columns)
        histogram = Histogram()
        histogram.update((self.observation.fit.rows / self.scales)[:, rest])
        choices = []
        for rule in rules:
            chosen = Range.of(*RULES[rule](histogram, *self._bounds(self.observation.fit.extremes, rest)))
            choices.append(self._cost(Choice(0.0, chosen, rule, columns=columns)))
        return min(choices, key=lambda choice: choice.error)

    def per_token(self) -> Choice:
        peaks = self._peaks(self.observation.fit.rows / self.scales)
        floor = max(float(peaks.min()), 1e-6) if self.gelu else max(float(peaks.max()) * 1e-4, 1e-6)
        chosen = Range.of(GELU_LEAST / floor, 1.0) if self.gelu else Range.of(-1.0, 1.0)
        return self._cost(Choice(0.0, chosen, "exact", per_token=floor))

    def refit(self, choice: Choice) -> Choice:
        """The same rule over all pictures, those that judged included."""
        if choice.per_token is not None:
            return choice
        rest = self._rest(choice.columns)
        histogram = Histogram()
        for part in (self.observation.fit, self.observation.held):
            histogram.update((part.rows / self.scales)[:, rest])
        bounds = RULES[choice.rule](histogram, *self._bounds(self.observation.all, rest))
        return replace(choice, input=Range.of(*bounds))

    def correction(self, choice: Choice) -> Array | None:
        """Minus the mean error of the output, `float32 [out]`, where that lowers the error enough."""
        fit = self.observation.fit.rows[:CORRECTION_ROWS] / self.scales
        shift = (fit @ self.weight - self._output(fit, choice)).mean(axis=0)
        error = self._output(self.judged, choice) - self.exact
        gained = 1 - np.square(error + shift).sum() / max(np.square(error).sum(), 1e-300)
        return np.asarray(shift, np.float32) if gained > CORRECTION_GAIN else None

    def _cost(self, choice: Choice) -> Choice:
        error = float(np.square(self._output(self.judged, choice) - self.exact, dtype=np.float64).sum())
        return replace(choice, error=error)

    def _output(self, rows: Array, choice: Choice) -> Array:
        """What the linears give for rows stored as the choice says, with their weights in int8."""
        if choice.per_token is not None:
            peaks = np.maximum(self._peaks(rows), choice.per_token)
            return np.asarray((choice.input.rounded(rows / peaks).astype(np.float32) @ self.rounded) * peaks)
        stored = choice.input.rounded(rows).astype(np.float32)
        if not choice.columns:
            return np.asarray(stored @ self.rounded)
        rest, columns = self._rest(choice.columns), list(choice.columns)
        return np.asarray(stored[:, rest] @ self.rounded[rest] + rows[:, columns] @ self.weight[columns])

    def _rest(self, columns: tuple[int, ...]) -> Array:
        rest = np.ones(self.weight.shape[0], bool)
        rest[list(columns)] = False
        return rest

    def _bounds(self, extremes: Extremes, rest: Array) -> tuple[float, float]:
        return float((extremes.low / self.scales)[rest].min()), float(
            (extremes.high / self.scales)[rest].max()
        )

    def _peaks(self, rows: Array) -> Array:
        """Each row's largest magnitude; after GELU that is its largest value."""
        return np.asarray((rows if self.gelu else np.abs(rows)).max(axis=1, keepdims=True))


def _numbers(array: Array) -> tuple[float, ...]:
    """Six digits are far below any step, and a plan is read by people."""
    return tuple(float(f"{number:.6g}") for number in array)


def _gain(before: Choice, after: Choice) -> float:
    return float(10 * np.log10(max(before.error, 1e-300) / max(after.error, 1e-300)))


def _extremes(parts: list[Extremes]) -> tuple[Array, Array]:
    return np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)


def _min_max(observation: Observation) -> Range:
    extremes = observation.all
    return Range.of(float(extremes.low.min()), float(extremes.high.max()))
