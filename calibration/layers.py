"""Drift layer by layer: where along the network the INT8 model leaves the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from calibration.graph import Array
from calibration.observe import observing_session
from calibration.plan import Target
from calibration.sites import find_sites


def layer_drift(
    model: ir.Model,
    quantized: ir.Model,
    pictures: Iterable[Array],
    *,
    target: Target,
    threads: int | None = None,
) -> Mapping[str, float]:
    """SQNR in dB of each linear's output, in graph order: what came in with its input, and its own error.

    Args:
        model: the float32 graph that `quantized` was written from.
        pictures: batches of `uint8 [N, H, W, 3]`; a few are enough.
        target: what the INT8 weights were made for.
    """
    names = [str(linear.node.outputs[0].name) for linear in find_sites(model).linears.values()]
    reference = observing_session(model, names, threads=threads)
    variant = observing_session(quantized, names, threads=threads, target=target)
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    for batch in pictures:
        exact = reference.run(names, {reference.get_inputs()[0].name: batch})
        rounded = variant.run(names, {variant.get_inputs()[0].name: batch})
        signal += [float(np.square(a, dtype=np.float64).sum()) for a in exact]
        noise += [
            float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(exact, rounded, strict=True)
        ]
    decibels = 10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, 1e-300))
    return dict(zip(find_sites(model).linears, np.clip(decibels, -200, 200).tolist(), strict=True))
