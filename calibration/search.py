"""The fastest plan within a budget.

The search starts with every linear layer in int8 and returns layers to float32, most noise per unit of cost
first. Bisection finds how many: the drift is taken to fall with every layer that returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array
from calibration.graph.layers import find_layers
from calibration.graph.memory import open_graph_session
from calibration.measure.drift import Drift, measure_drift, to_decibels
from calibration.measure.multiply_adds import count_multiply_adds
from calibration.plan import LinearPlan, QuantizationPlan
from calibration.token_merging.merge_schedule import MergeSearch, search_merging
from calibration.write import write_plan
from runtime.errors import FailureError
from runtime.text import format_count

FEW_IMAGES = 8  # enough to rank the layers by their noise
MOST_FLOAT = 0.5  # of the linears' cost; with more of it in float, little of the speed of INT8 is left
LOAD = 10.0  # multiply-adds whose gain in int8 is as long as reading one weight as float instead of int8
FLOAT = LinearPlan(precision="float32")


class BudgetError(FailureError):
    """No plan within the budget that still deserves to be called INT8."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on the drift of INT8; None sets no limit."""

    max_drift: float | None = None  # percentage points of top-1 lost
    min_agreement: float | None = None  # per cent of images with the same label
    min_sqnr: float | None = None  # dB, of the logits

    @property
    def limits(self) -> bool:
        """True if there is any limit."""
        return any(limit is not None for limit in (self.max_drift, self.min_agreement, self.min_sqnr))

    def misses(self, drift: Drift, *, surely: bool = False) -> list[str]:
        """Return one phrase per limit that is not met.

        Args:
            drift: what was measured.
            surely: of top-1 and agreement, only what chance cannot explain: the whole 95 % interval is beyond
                the limit.

        Raises:
            ValueError: for a limit on top-1 where the true classes are not known.
        """
        found = []
        if self.max_drift is not None:
            interval = drift.drop_interval
            if drift.top1_drop is None or interval is None:
                raise ValueError("a limit on top-1 needs images whose classes are known")
            if (interval.low if surely else drift.top1_drop) > self.max_drift:
                fall = f"{drift.top1_drop:.2f} points (limit: {self.max_drift:g} points)"
                found.append(f"top-1 falls by {fall}")
        agreement = drift.agreement_interval.high if surely else drift.agreement
        if self.min_agreement is not None and agreement < self.min_agreement:
            found.append(f"agreement is {drift.agreement:.2f} % (minimum: {self.min_agreement:g} %)")
        if self.min_sqnr is not None and drift.sqnr < self.min_sqnr:
            found.append(f"SQNR is {drift.sqnr:.1f} dB (minimum: {self.min_sqnr:g} dB)")
        return found


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """Cost of a linear layer in float, and the noise of the logits when it alone is int8."""

    name: str
    sqnr: float  # dB, of the logits
    cost: float  # share of what all int8 linears would cost in float


@dataclass(frozen=True, kw_only=True)
class PlanSearch:
    """The plan that was found, and the drift before and after."""

    start: QuantizationPlan
    plan: QuantizationPlan
    returned: tuple[LayerSensitivity, ...]  # to float, most noise per unit of cost first
    before: Drift  # with every linear in int8
    after: Drift  # without merging
    merging: MergeSearch | None = None  # where merging was asked for

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of report.json."""
        return {
            "images": self.after.images,
            "returned_to_float": [asdict(layer) for layer in self.returned],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            **({"merging": self.merging.to_dict()} if self.merging is not None else {}),
        }


def search_plan(
    model: ir.Model,
    plan: QuantizationPlan,
    images: Iterable[Array],
    budget: Budget,
    *,
    targets: Array | None = None,
    same_name: Array | None = None,
    merge_within: Budget | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> PlanSearch:
    """Return the plan within a budget, with as few and as cheap linears as possible returned to float.

    Where half of the linears' work in float is not enough on these images, but the 95 % intervals reach the
    limits, layers return until the intervals do: one label that changes by chance is no reason to give up the
    speed.

    Args:
        model: the canonical float graph.
        plan: the plan to start from, with int8 linears.
        images: batches `uint8 [N, H, W, 3]`, used neither for calibration nor for the final report.
        budget: limits on the drift.
        targets: their classes `int64 [images]`, for a limit on top-1.
        same_name: as `measure_drift` takes it.
        merge_within: merge as many tokens as this budget allows, once the linears are within `budget`; None
            merges none.
        threads: CPU threads; None takes every core that this process may use.
        progress: called with 1 after each plan that was tried.

    Raises:
        BudgetError: when not even half of the linears' work in float is enough.
        PlanError: when tokens are to be merged and the graph cannot.
    """
    trials = _Trials(model, plan, list(images), (targets, same_name), threads, progress)
    found = _search_linears(trials, plan, budget)
    if merge_within is None:
        return found
    merging = search_merging(
        model, lambda schedule: trials.measure(found.returned, schedule), merge_within.misses, found.after
    )
    return replace(found, plan=replace(found.plan, merging=merging.merging), merging=merging)


def _search_linears(trials: _Trials, plan: QuantizationPlan, budget: Budget) -> PlanSearch:
    before = trials.measure(())
    unchanged = PlanSearch(start=plan, plan=plan, returned=(), before=before, after=before)
    if not budget.misses(before):
        return unchanged
    if plan.target == "npu":
        raise BudgetError(
            f"{'; '.join(budget.misses(before))} on {format_count(before.images, 'image')} of the search; "
            "target npu returns no layer to float: give other calibration images, or take float16 (--fp16)"
        )
    layers = trials.rank_layers()
    costs = np.cumsum([layer.cost for layer in layers])
    most = int(np.searchsorted(costs, MOST_FLOAT, side="right"))
    after = trials.measure(layers[:most])
    surely = bool(budget.misses(after))
    if missed := budget.misses(after, surely=True):
        worst = ", ".join(f"{layer.name} ({layer.sqnr:.1f} dB)" for layer in layers[:5])
        raise BudgetError(
            f"{'; '.join(missed)} on {format_count(after.images, 'image')} of the search, even with {most} "
            f"of {len(layers)} linear layers (half of their cost) in float32; furthest from float32: {worst}"
        )
    if not budget.misses(before, surely=surely):
        return unchanged
    enough, too_few = most, 0
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        drift = trials.measure(layers[:middle])
        if budget.misses(drift, surely=surely):
            too_few = middle
        else:
            enough, after = middle, drift
    found = return_to_float(plan, [layer.name for layer in layers[:enough]])
    return replace(unchanged, plan=found, returned=tuple(layers[:enough]), after=after)


def return_to_float(plan: QuantizationPlan, names: Iterable[str]) -> QuantizationPlan:
    """Return the plan with these linears in float32."""
    return replace(plan, linears={**plan.linears, **dict.fromkeys(names, FLOAT)})


@dataclass
class _Trials:
    """Measures variations of one plan on the same images."""

    model: ir.Model
    plan: QuantizationPlan
    images: Sequence[Array]
    truth: tuple[Array | None, Array | None]
    threads: int | None
    progress: Callable[[int], object]

    def __post_init__(self) -> None:
        self.few = np.concatenate(self.images)[:FEW_IMAGES]
        self.exact = self._run(self.model, self.images)

    def measure(self, layers: Sequence[LayerSensitivity], merging: Mapping[str, int] | None = None) -> Drift:
        """Measure the drift of the plan with these layers in float and this many tokens merged."""
        plan = return_to_float(self.plan, [layer.name for layer in layers])
        written = write_plan(self.model, replace(plan, merging=merging or {}))
        return measure_drift(self.exact, self._run(written, self.images), *self.truth)

    def rank_layers(self) -> list[LayerSensitivity]:
        """Return all int8 linears, the most noise per unit of cost first."""
        names = self.plan.int8_linears()
        costs = self._estimate_costs(names)
        exact = self.exact[: len(self.few)]
        signal = float(np.square(exact, dtype=np.float64).sum())
        noises = {}
        for name in names:
            alone = return_to_float(self.plan, [other for other in names if other != name])
            logits = self._run(write_plan(self.model, alone), [self.few])
            noises[name] = float(np.square(exact - logits, dtype=np.float64).sum())
        return [
            LayerSensitivity(name=name, sqnr=to_decibels(signal, noises[name]), cost=costs[name])
            for name in sorted(names, key=lambda name: (-(noises[name] / costs[name]), name))
        ]

    def _estimate_costs(self, names: Sequence[str]) -> dict[str, float]:
        """Return each layer's share of what returning all of them to float would cost."""
        linears = find_layers(self.model).linears
        multiply_adds = count_multiply_adds(self.model, self.few[:1], threads=self.threads)
        costs = {name: multiply_adds[name] + LOAD * linears[name].weight.size for name in names}
        return {name: cost / sum(costs.values()) for name, cost in costs.items()}

    def _run(self, model: ir.Model, images: Sequence[Array]) -> Array:
        session = open_graph_session(model, threads=self.threads, target=self.plan.target)
        feed = session.get_inputs()[0].name
        # One at a time: batches win nothing on a CPU, and the memory of a large one stays in the arena.
        singles = [image for batch in images for image in np.split(batch, len(batch))]
        logits = np.concatenate([session.run(None, {feed: image})[0] for image in singles])
        self.progress(1)
        return logits
