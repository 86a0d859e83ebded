"""Drift layer by layer: where along the network the INT8 model leaves the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from calibration.graph import Array
from calibration.measure.drift import decibels
from calibration.observe import observing_session
from calibration.plan import QuantizationPlan
from calibration.sites import Sites, find_sites
from calibration.split import hidden_of


def layer_drift(
    model: ir.Model,
    quantized: ir.Model,
    plan: QuantizationPlan,
    images: Iterable[Array],
    *,
    threads: int | None = None,
) -> Mapping[str, float]:
    """Return the SQNR of each linear's output in dB, in graph order.

    The noise is the error of its input and its own error together.

    Args:
        model: the float32 graph.
        quantized: the graph that `plan` was written into.
        plan: the plan of `quantized`.
        images: batches of `uint8 [N, H, W, 3]`; a few are enough.
        threads: CPU threads; None takes every core that this process may use.
    """
    sites = find_sites(model)
    names = [str(linear.node.outputs[0].name) for linear in sites.linears.values()]
    reference = observing_session(model, names, threads=threads)
    variant = observing_session(quantized, names, threads=threads, target=plan.target)
    kept = _features_left(sites, plan)
    signal, noise = dict.fromkeys(sites.linears, 0.0), dict.fromkeys(sites.linears, 0.0)
    for batch in images:
        for image in np.split(batch, len(batch)):  # one at a time: of eight, ViT-L's tensors take 1.4 GB
            exact = reference.run(names, {reference.get_inputs()[0].name: image})
            rounded = variant.run(names, {variant.get_inputs()[0].name: image})
            for name, before, after in zip(sites.linears, exact, rounded, strict=True):
                before = before[:, kept[name]] if name in kept else before
                scales = np.array(plan.balance[name].scales) if name in plan.balance else 1.0
                signal[name] += float(np.square(before, dtype=np.float64).sum())
                noise[name] += float(np.square(before - after * scales, dtype=np.float64).sum())
    return {name: decibels(signal[name], noise[name]) for name in sites.linears}


def _features_left(sites: Sites, plan: QuantizationPlan) -> dict[str, Array]:
    """For an MLP whose columns are split off: which outputs its first linear still computes."""
    found = {}
    for name, linear in sites.linears.items():
        columns = plan.linears[name].float_columns if name in plan.linears else ()
        hidden = hidden_of(sites, linear) if columns else None
        if hidden is not None:
            found[hidden.first.name] = np.setdiff1d(np.arange(linear.weight.shape[0]), columns)
    return found
