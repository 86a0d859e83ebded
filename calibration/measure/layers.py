"""Drift layer by layer: where along the network the INT8 model leaves the float model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import IO

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array
from calibration.graph.layers import Sites, find_sites
from calibration.measure.drift import decibels
from calibration.observe import observing_session
from calibration.plan import QuantizationPlan
from calibration.split import hidden_of
from runtime.writing import temporary_folder

# Bytes of float outputs that wait in a file until the INT8 session has run: 16 images of a ViT-B, 6 of a
# ViT-L. More images take further rounds, so that neither the file nor memory grows with their number.
ASIDE = 2**30


def layer_drift(
    model: ir.Model,
    quantized: ir.Model,
    plan: QuantizationPlan,
    images: Iterable[Array],
    *,
    threads: int | None = None,
) -> Mapping[str, float]:
    """Return the SQNR of each linear's output in dB, in graph order.

    The noise is the error of its input and its own error together. One of the two sessions is open at a time.

    Args:
        model: the float32 graph.
        quantized: the graph that `plan` was written into.
        plan: the plan of `quantized`.
        images: batches of `uint8 [N, H, W, 3]`; a few are enough.
        threads: CPU threads; None takes every core that this process may use.
    """
    sites = find_sites(model)
    names = [str(linear.node.outputs[0].name) for linear in sites.linears.values()]
    kept = _features_left(sites, plan)
    signal, noise = dict.fromkeys(sites.linears, 0.0), dict.fromkeys(sites.linears, 0.0)
    single = (image for batch in images for image in np.split(batch, len(batch)))
    for first in single:
        with temporary_folder() as folder, (folder / "outputs").open("w+b") as file:
            some = _set_aside(model, names, chain([first], single), file, threads)
            file.seek(0)
            rounded = _rounded(quantized, names, some, plan, threads)
            for name, after in zip(list(sites.linears) * len(some), rounded, strict=True):
                before = np.load(file, allow_pickle=False)
                before = before[:, kept[name]] if name in kept else before
                scales = np.array(plan.balance[name].scales) if name in plan.balance else 1.0
                signal[name] += float(np.square(before, dtype=np.float64).sum())
                noise[name] += float(np.square(before - after * scales, dtype=np.float64).sum())
    return {name: decibels(signal[name], noise[name]) for name in sites.linears}


def _set_aside(
    model: ir.Model, names: Sequence[str], images: Iterable[Array], file: IO[bytes], threads: int | None
) -> list[Array]:
    """Write the float model's tensors into a file until it is full; return the images that were run.

    The session is closed on return: of a ViT-L, both sessions at once took 4.1 GiB, one takes 3.3.
    """
    session = observing_session(model, names, threads=threads)
    done = []
    for image in images:  # one at a time: of eight, ViT-L's tensors take 1.4 GB
        for tensor in session.run(names, {session.get_inputs()[0].name: image}):
            np.save(file, tensor, allow_pickle=False)
        done.append(image)
        if file.tell() >= ASIDE:
            break
    return done


def _rounded(
    quantized: ir.Model,
    names: Sequence[str],
    images: Iterable[Array],
    plan: QuantizationPlan,
    threads: int | None,
) -> Iterator[Array]:
    """Yield the INT8 model's tensors in the order in which `_set_aside` wrote the float ones."""
    session = observing_session(quantized, names, threads=threads, target=plan.target)
    for image in images:
        yield from session.run(names, {session.get_inputs()[0].name: image})


def _features_left(sites: Sites, plan: QuantizationPlan) -> dict[str, Array]:
    """For an MLP whose columns are split off: which outputs its first linear still computes."""
    found = {}
    for name, linear in sites.linears.items():
        columns = plan.linears[name].float_columns if name in plan.linears else ()
        hidden = hidden_of(sites, linear) if columns else None
        if hidden is not None:
            found[hidden.first.name] = np.setdiff1d(np.arange(linear.weight.shape[0]), columns)
    return found
