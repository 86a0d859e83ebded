"""From what was observed to a plan: each choice by what it does to the layer's own output.

Candidates are fitted to three quarters of the calibration images and judged on the others, so that a range
that leaves no room for a new image loses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibration.balance import STRENGTHS, Group, find_groups, scales_for
from calibration.graph.edit import Array
from calibration.graph.layers import Linear, Sites
from calibration.observe import Extremes, Observation
from calibration.plan import (
    PROBABILITY,
    BalancePlan,
    LinearPlan,
    PlanError,
    Precision,
    ProductPlan,
    QuantizationPlan,
    Range,
)
from calibration.split import hidden_of
from calibration.trial import Choice, Trial
from calibration.weights import fits_float16
from runtime.model_file.targets import Target

FLOAT_COLUMNS = 16  # hidden features that may be multiplied in float: under one per cent of an MLP's work
GAIN_OF_COLUMNS = 1.5  # dB on the layer's output, to be worth their time
# A row's own scale costs up to a thousandth of a prediction: worth it when it takes away so much of the error
# that all linears add to the residual stream together. Where an image has one row it costs next to nothing.
SHARE_OF_TOKENS, GAIN_OF_ONE_ROW = 0.01, 0.2


@dataclass(frozen=True)
class Candidates:
    """The ways left for one linear: a form at no cost, and rows with scales of their own."""

    linear: Linear
    scales: Array | None  # balance
    cheap: Choice
    per_token: Choice | None = None
    one_row: bool = False  # an image has one row here


def decide(
    sites: Sites,
    observed: Mapping[str, Observation],
    *,
    target: Target,
    keep_float: Collection[str] = (),
    quantize_products: bool = False,
    single_rows: Precision = "float16",
) -> QuantizationPlan:
    """Return a plan with every linear in int8, except `keep_float` and those that see one row per image.

    Args:
        sites: where the graph can be quantized.
        observed: statistics of the activations, by the name of the tensor.
        target: the form of the weights.
        keep_float: names of linears and products that stay in float32.
        quantize_products: quantize the two products of attention as well.
        single_rows: precision of the linears that see one row per image: the head, and in a class-token model
            the query, proj, fc1 and fc2 of the last block. In float they take 1 % of the time of a prediction
            and give 0.4 to 1.3 dB. Weights that float16 does not hold stay float32.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
    """
    known = {**sites.linears, **sites.products}
    if unknown := sorted(set(keep_float) - set(known)):
        raise PlanError(f"no layer is called {', '.join(unknown)}; the graph has: {', '.join(known)}")
    decision = _Decision(sites, observed, target, frozenset(keep_float))
    decision.keep_single_rows(single_rows)
    products = decision.products(quantize_products)
    linears = decision.linears()
    return QuantizationPlan(target=target, linears=linears, products=products, balance=decision.balance)


class _Decision:
    def __init__(
        self, sites: Sites, observed: Mapping[str, Observation], target: Target, keep_float: frozenset[str]
    ) -> None:
        self.sites, self.observed, self.target, self.keep_float = sites, observed, target, keep_float
        self.balance: dict[str, BalancePlan] = {}
        self.kept = dict.fromkeys(keep_float & set(sites.linears), LinearPlan(precision="float32"))

    def keep_single_rows(self, precision: Precision) -> None:
        """Leave the linears that see one row per image in `precision`, unless that is int8."""
        for name, linear in self.sites.linears.items():
            if precision == "int8" or name in self.kept or linear.reads_pixels:
                continue
            if self.observed[str(linear.input.name)].rows_per_image == 1:
                fits = precision != "float16" or fits_float16(linear.weight)
                self.kept[name] = LinearPlan(precision=precision if fits else "float32")

    def linears(self) -> dict[str, LinearPlan]:
        found: dict[str, Candidates] = {}
        for group in find_groups(self.sites):
            if kept := [each for each in group.linears if each.name not in self.kept]:
                found |= self._balanced(group, kept)
        for name, linear in self.sites.linears.items():
            if name not in found and name not in self.kept and not linear.reads_pixels:
                found[name] = self._unbalanced(linear)
        chosen = {name: self._plan(found[name], choice) for name, choice in _economical(found).items()}
        for name, linear in self.sites.linears.items():
            if name in self.kept:
                chosen[name] = self.kept[name]
            elif linear.reads_pixels:
                chosen[name] = LinearPlan(precision="int8")
        self._uncorrect_split(chosen)
        return {name: chosen[name] for name in self.sites.linears}

    def _uncorrect_split(self, chosen: dict[str, LinearPlan]) -> None:
        """Hidden features that are computed in float have no error to correct."""
        for name, plan in list(chosen.items()):
            hidden = hidden_of(self.sites, self.sites.linears[name]) if plan.float_columns else None
            if hidden is not None and chosen[hidden.first.name].correction:
                first = chosen[hidden.first.name]
                corrected = np.array(first.correction)
                corrected[list(plan.float_columns)] = 0.0
                chosen[hidden.first.name] = replace(first, correction=_numbers(corrected))

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

    def _balanced(self, group: Group, linears: list[Linear]) -> dict[str, Candidates]:
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
        found = {
            linear.name: candidates
            for name, readers in tensors.items()
            for linear, candidates in zip(readers, self._choose(name, readers, scales), strict=True)
        }
        if not strength:
            return {name: replace(each, scales=None) for name, each in found.items()}
        low, high = _extremes([self.observed[name].all for name in tensors])
        scales = scales_for(low, high, strength)
        self.balance[group.name] = BalancePlan(strength=strength, scales=_numbers(scales))
        return {name: replace(each, scales=scales) for name, each in found.items()}

    def _unbalanced(self, linear: Linear) -> Candidates:
        ones = np.ones(linear.weight.shape[0], np.float32)
        (found,) = self._choose(str(linear.input.name), [linear], ones)
        return replace(found, scales=None)

    def _choose(self, tensor: str, readers: list[Linear], scales: Array) -> list[Candidates]:
        """The best rule for a tensor divided by `scales`; columns in float only where they gain enough."""
        trial = self._trial(tensor, readers, scales)
        best = trial.per_tensor()
        one_row = self.observed[tensor].rows_per_image == 1
        if len(readers) > 1 or not (one_row or self._after_linear_map(readers[0])):
            return [Candidates(linear, scales, best) for linear in readers]
        if not one_row and hidden_of(self.sites, readers[0]) is not None and len(scales) >= 8 * FLOAT_COLUMNS:
            high = self.observed[tensor].all.high
            columns = tuple(sorted(np.argsort(-high, kind="stable")[:FLOAT_COLUMNS].tolist()))
            split = trial.per_tensor(columns)
            if _gain(best, split) >= GAIN_OF_COLUMNS:
                best = split
        return [Candidates(readers[0], scales, best, trial.per_token(), one_row)]

    def _trial(self, tensor: str, readers: list[Linear], scales: Array) -> Trial:
        weight = np.concatenate([linear.weight for linear in readers], axis=1) * scales[:, None]
        above = readers[0].input.producer()
        gelu = above is not None and above.op_type == "Gelu"
        return Trial(self.observed[tensor], weight, scales, self.target, gelu=gelu)

    def _after_linear_map(self, linear: Linear) -> bool:
        """LayerNormalization gives all rows one magnitude already: scales of their own would gain little."""
        above = linear.input.producer()
        return above is not None and above.op_type != "LayerNormalization"

    def _plan(self, found: Candidates, choice: Choice) -> LinearPlan:
        """The choice with its range fitted again to all images, and the bias correction where it helps."""
        linear, ones = found.linear, np.ones(found.linear.weight.shape[0], np.float32)
        scales = ones if found.scales is None else found.scales
        trial = self._trial(str(linear.input.name), [linear], scales)
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


def _economical(found: Mapping[str, Candidates]) -> dict[str, Choice]:
    """Rows with scales of their own where they take enough from the error of all, else the form at no cost.

    Only linears that write into the residual stream have both, so their errors are in the same unit.
    """
    both = [each for each in found.values() if each.per_token is not None and not each.one_row]
    total = sum(min(each.cheap.error, each.per_token.error) for each in both if each.per_token is not None)
    chosen = {}
    for name, each in found.items():
        chosen[name] = each.cheap
        if each.per_token is None:
            continue
        worth = each.cheap.error - each.per_token.error >= SHARE_OF_TOKENS * total
        if _gain(each.cheap, each.per_token) >= GAIN_OF_ONE_ROW if each.one_row else worth:
            chosen[name] = each.per_token
    return chosen


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
