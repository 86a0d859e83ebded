"""Share of the activations of new images that lies outside the calibrated ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.balance import find_groups
from calibration.graph.edit import Array
from calibration.graph.layers import Sites, find_sites
from calibration.observe import observing_session
from calibration.plan import QuantizationPlan, Range


@dataclass(frozen=True)
class Clipped:
    """Activations of one layer's input that its range cuts off."""

    share: float  # of all activations, 0 to 1
    images: tuple[int, ...]  # indices of the images with the largest share, worst first


def clipped_activations(
    model: ir.Model, plan: QuantizationPlan, images: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, Clipped]:
    """Run images through the float model and count the activations outside the ranges of a plan.

    Rows with scales of their own cannot be exceeded and are left out, as are layers in float.

    Args:
        model: the canonical float32 graph.
        plan: the plan with the ranges.
        images: batches of `uint8 [N, H, W, 3]`.
        threads: CPU threads; None takes all cores.

    Returns:
        By the name of the linear layer, in graph order.
    """
    sites = find_sites(model)
    ranged = {
        name: each.input
        for name, each in plan.linears.items()
        if each.input is not None and each.per_token is None and name in sites.linears
    }
    if not ranged:
        return {}
    names = [str(sites.linears[name].input.name) for name in ranged]
    session = observing_session(model, list(dict.fromkeys(names)), threads=threads)
    divisors = _divisors(sites, plan)
    shares: dict[str, list[float]] = {name: [] for name in ranged}
    for batch in images:
        for image in np.split(batch, len(batch)):
            found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))
            for name, chosen in ranged.items():
                values = found[str(sites.linears[name].input.name)] / divisors.get(name, 1.0)
                outside = _kept(beyond(values, chosen), plan.linears[name].float_columns)
                shares[name].append(float(outside.mean()))
    return {name: _summed(each) for name, each in shares.items()}


def beyond(values: Array, chosen: Range) -> Array:
    """Return which values lie more than one step outside a range.

    Rounding alone is off by half a step. GELU's values pile up at its minimum, -0.17: a range that ended
    half a step above cut 2.4 % of them, each by 0.3 % of a step more than rounding does.
    """
    low, high = -chosen.zero_point * chosen.scale, (255 - chosen.zero_point) * chosen.scale
    return np.asarray((values < low - chosen.scale) | (values > high + chosen.scale))


def _divisors(sites: Sites, plan: QuantizationPlan) -> dict[str, Array]:
    """Return what the plan divides the input features of each linear by."""
    found: dict[str, Array] = {}
    for group in find_groups(sites):
        if (balance := plan.balance.get(group.name)) is not None:
            found |= {linear.name: np.array(balance.scales, np.float32) for linear in group.linears}
    return found


def _kept(outside: Array, columns: tuple[int, ...]) -> Array:
    """Return the features that the range is for: not those that are multiplied in float."""
    return np.asarray(np.delete(outside, list(columns), axis=-1)) if columns else outside


def _summed(shares: list[float]) -> Clipped:
    order = np.argsort(-np.array(shares), kind="stable")[:3]
    return Clipped(float(np.mean(shares)), tuple(int(index) for index in order if shares[index] > 0))
