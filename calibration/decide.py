"""From statistics of the activations to a plan: each choice by the error of the layer's own output.

Choices are fitted to three quarters of the calibration images and judged on the others, so that a range that
leaves no room for a new image loses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from calibration.balance import STRENGTHS, BalanceGroup, compute_balance_scales, find_balance_groups
from calibration.graph.edit import Array, producer
from calibration.graph.layers import GraphLayers, Linear
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
    round_numbers,
)
from calibration.split import find_mlp_to_split
from calibration.trial import Choice, Trial
from calibration.weights import fits_float16
from runtime.model_file.targets import Target

FLOAT_COLUMNS = 16  # hidden features that may be multiplied in float: under one per cent of an MLP's work
# One scale per token, or columns in float, cost 0.2 to 0.6 % of a prediction each: worth it when they
# take away this share of the error that all linears add to the residual stream. Where an image has one row,
# one scale per token costs nearly nothing.
SHARE_OF_ERROR = 0.02
GAIN_OF_ONE_ROW = 0.2  # dB on the layer's output


@dataclass(frozen=True)
class Candidates:
    """The best choices for one linear: one scale per tensor at no cost, then those that cost time."""

    linear: Linear
    scales: Array  # of the balance
    choices: tuple[Choice, ...]
    one_row: bool = False  # an image has one row here


def decide_plan(
    layers: GraphLayers,
    observed: Mapping[str, Observation],
    *,
    target: Target,
    keep_float: Collection[str] = (),
    quantize_products: bool = False,
    single_rows: Precision = "float16",
) -> QuantizationPlan:
    """Return a plan with every linear in int8, except `keep_float` and those that see one row per image.

    One row per image, in precision `single_rows`, is what the head sees, and in a class-token model the
    query, proj, fc1 and fc2 of the last block. In float they take 1 % of the time of a prediction and give
    0.4 to 1.3 dB. Weights that float16 does not hold stay float32. `observed` is by the name of the tensor.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
    """
    present = {**layers.linears, **layers.products}
    if unknown := sorted(set(keep_float) - set(present)):
        raise PlanError(f"no layer is called {', '.join(unknown)}; the graph has: {', '.join(present)}")
    decision = _Decision(layers, observed, target, frozenset(keep_float))
    decision.fix_precisions(single_rows)
    return QuantizationPlan(
        target=target,
        linears=decision.decide_linears(),
        products=decision.decide_products(quantize_products),
        balance=decision.balance,
    )


class _Decision:
    """The plan of one graph in the making."""

    def __init__(
        self, layers: GraphLayers, observed: Mapping[str, Observation], target: Target, keep: frozenset[str]
    ) -> None:
        self.layers, self.observed, self.target, self.keep_float = layers, observed, target, keep
        self.balance: dict[str, BalancePlan] = {}
        self.fixed = dict.fromkeys(keep & set(layers.linears), LinearPlan(precision="float32"))

    def fix_precisions(self, single_rows: Precision) -> None:
        """Fix the plan of linears without a range: those that read pixels, or one row per image in float."""
        for name, linear in self.layers.linears.items():
            if name in self.fixed:
                continue
            if linear.reads_pixels:
                self.fixed[name] = LinearPlan(precision="int8")
            elif single_rows != "int8" and self.observed[str(linear.input.name)].rows_per_image == 1:
                fits = single_rows != "float16" or fits_float16(linear.weight)
                self.fixed[name] = LinearPlan(precision=single_rows if fits else "float32")

    def decide_linears(self) -> dict[str, LinearPlan]:
        """Return the plan of every linear, and note the balance."""
        found: dict[str, Candidates] = {}
        for group in find_balance_groups(self.layers):
            if linears := [each for each in group.linears if each.name not in self.fixed]:
                found |= self._balance(group, linears)
        for name, linear in self.layers.linears.items():
            if name not in found and name not in self.fixed:
                ones = np.ones(linear.weight.shape[0], np.float32)
                (found[name],) = self._choose(str(linear.input.name), [linear], ones)
        chosen = {name: self._finish(found[name], choice) for name, choice in _weigh_costs(found).items()}
        chosen |= self.fixed
        return {name: chosen[name] for name in self.layers.linears}

    def decide_products(self, quantize: bool) -> dict[str, ProductPlan]:
        """Return the plan of every attention product: min-max ranges, and 0 to 1 for probabilities."""
        found = {}
        for name, product in self.layers.products.items():
            if not quantize or name in self.keep_float:
                found[name] = ProductPlan(precision="float32")
                continue
            inputs = (self.observed[str(value.name)].all for value in (product.left, product.right))
            left, right = (Range.of(float(each.low.min()), float(each.high.max())) for each in inputs)
            left = PROBABILITY if product.mixes_probabilities else left
            found[name] = ProductPlan(precision="int8", left=left, right=right)
        return found

    def _balance(self, group: BalanceGroup, linears: list[Linear]) -> dict[str, Candidates]:
        """Choose one strength for all readers of a producer, then one range per tensor that they read."""
        tensors: dict[str, list[Linear]] = {}
        for linear in linears:
            tensors.setdefault(str(linear.input.name), []).append(linear)
        fit = reduce(Extremes.merge, (self.observed[name].fit.extremes for name in tensors))
        errors = {}
        for strength in STRENGTHS:
            scales = compute_balance_scales(fit.low, fit.high, strength)
            trials = [self._trial(name, readers, scales) for name, readers in tensors.items()]
            # The two rules without a search over the histogram: enough to rank strengths.
            choices = [trial.choose_per_tensor(rules=("min-max", "margin")) for trial in trials]
            errors[strength] = sum(choice.error for choice in choices)
        strength = min(STRENGTHS, key=lambda each: errors[each])
        scales = compute_balance_scales(fit.low, fit.high, strength)
        found = {
            linear.name: candidates
            for name, readers in tensors.items()
            for linear, candidates in zip(readers, self._choose(name, readers, scales), strict=True)
        }
        if not strength:
            return found
        final = reduce(Extremes.merge, (self.observed[name].all for name in tensors))
        scales = compute_balance_scales(final.low, final.high, strength)
        self.balance[group.name] = BalancePlan(strength=strength, scales=round_numbers(scales))
        return {name: replace(each, scales=scales) for name, each in found.items()}

    def _choose(self, tensor: str, readers: list[Linear], scales: Array) -> list[Candidates]:
        """Return the best choices for the readers of a tensor divided by `scales`."""
        trial = self._trial(tensor, readers, scales)
        best = trial.choose_per_tensor()
        one_row = self.observed[tensor].rows_per_image == 1
        # One scale per token multiplies the output of one linear. LayerNormalization gives all rows one
        # magnitude already, so that it would gain little there.
        if len(readers) > 1 or (_is_normalized(readers[0]) and not one_row):
            return [Candidates(linear, scales, (best,)) for linear in readers]
        choices = [best, trial.choose_per_token()]
        # In a narrow MLP, sixteen columns in float would be more than an eighth of the work.
        wide = len(scales) >= 8 * FLOAT_COLUMNS
        if not one_row and wide and find_mlp_to_split(self.layers, readers[0]) is not None:
            high = self.observed[tensor].all.high
            columns = tuple(sorted(np.argsort(-high, kind="stable")[:FLOAT_COLUMNS].tolist()))
            choices += [trial.choose_per_tensor(columns), trial.choose_per_token(columns)]
        return [Candidates(readers[0], scales, tuple(choices), one_row)]

    def _trial(self, tensor: str, readers: list[Linear], scales: Array) -> Trial:
        weight = np.concatenate([linear.weight for linear in readers], axis=1) * scales[:, None]
        gelu = producer(readers[0].input, "Gelu") is not None
        return Trial(self.observed[tensor], weight, scales, self.target, gelu=gelu)

    def _finish(self, found: Candidates, choice: Choice) -> LinearPlan:
        """Fit the range of a choice again to all images, and choose the scales of the weights."""
        trial = self._trial(str(found.linear.input.name), [found.linear], found.scales)
        final = trial.refit(choice)
        return LinearPlan(
            precision="int8",
            input=final.input,
            rule=final.rule,
            per_token=final.per_token,
            float_columns=final.columns,
            ratios=trial.choose_ratios(final),
        )


def _weigh_costs(found: Mapping[str, Candidates]) -> dict[str, Choice]:
    """Choose one scale per token and columns in float where they are worth their time.

    Only linears that write into the residual stream have several choices, so their errors are in one unit.
    """
    several = [each for each in found.values() if len(each.choices) > 1 and not each.one_row]
    price = SHARE_OF_ERROR * sum(min(choice.error for choice in each.choices) for each in several)
    chosen = {}
    for name, each in found.items():
        if each.one_row and len(each.choices) > 1:
            per_tensor, per_token = each.choices
            worth = _gain(per_tensor, per_token) >= GAIN_OF_ONE_ROW
            chosen[name] = per_token if worth else per_tensor
        else:
            chosen[name] = min(each.choices, key=lambda choice: choice.error + price * _count_steps(choice))
    return chosen


def _count_steps(choice: Choice) -> int:
    """Return how many remedies a choice pays for with time."""
    return (choice.per_token is not None) + bool(choice.columns)


def _is_normalized(linear: Linear) -> bool:
    """Return whether the input is a LayerNormalization's output, or the graph's."""
    above = linear.input.producer()
    return above is None or above.op_type == "LayerNormalization"


def _gain(before: Choice, after: Choice) -> float:
    """Return by how much the error is lower, in dB."""
    return float(10 * np.log10(max(before.error, 1e-300) / max(after.error, 1e-300)))
