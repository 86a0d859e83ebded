"""Each layer by itself: drift of its output, and activations outside the range of its input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO

import numpy as np
import onnx_ir as ir

from calibration.balance import find_balance_groups
from calibration.graph.edit import Array
from calibration.graph.layers import find_layers
from calibration.measure.drift import to_decibels
from calibration.npu_graph import find_narrow_layers, group_tensors, prepare_for_npu
from calibration.observe import open_observing_session, run_each
from calibration.plan import QuantizationPlan, Range
from calibration.split import find_planned_splits
from runtime.writing import temporary_folder

# Bytes of float outputs that wait in a file until the INT8 session has run: 16 images of a ViT-B, 6 of a
# ViT-L. More images take further rounds, so that neither the file nor memory grows with their number.
MOST_WAITING = 2**30


# --- Drift of the outputs ---


def measure_layer_drift(
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
    layers = find_layers(model)
    names = [str(linear.node.outputs[0].name) for linear in layers.linears.values()]
    # Outputs that the first linear of an MLP still computes where others are split off.
    integer_columns = {
        mlp.first.name: np.setdiff1d(np.arange(len(mlp.second.weight)), columns)
        for mlp, columns in find_planned_splits(layers, plan.linears)
    }
    signal, noise = dict.fromkeys(layers.linears, 0.0), dict.fromkeys(layers.linears, 0.0)
    divisors = {name: np.array(each.scales) for name, each in plan.balance.items()}
    if plan.target == "npu":  # the queries are multiplied where the keys are divided
        narrow = find_narrow_layers(prepare_for_npu(model))
        divisors |= {each.other.name: 1 / divisors[each.linear.name] for each in narrow if not each.by_input}
    single = (image for batch in images for image in np.split(batch, len(batch)))
    for first in single:
        with temporary_folder() as folder, (folder / "outputs").open("w+b") as file:
            some = _write_float_outputs(model, names, chain([first], single), file, threads)
            file.seek(0)
            outputs = run_each(quantized, names, some, threads=threads, target=plan.target)
            tensors = chain.from_iterable(outputs)
            for name, after in zip(list(layers.linears) * len(some), tensors, strict=True):
                before = np.load(file, allow_pickle=False)
                before = before[:, integer_columns[name]] if name in integer_columns else before
                scales = divisors.get(name, 1.0)
                signal[name] += float(np.square(before, dtype=np.float64).sum())
                noise[name] += float(np.square(before - after * scales, dtype=np.float64).sum())
    return {name: to_decibels(signal[name], noise[name]) for name in layers.linears}


def _write_float_outputs(
    model: ir.Model, names: Sequence[str], images: Iterable[Array], file: IO[bytes], threads: int | None
) -> list[Array]:
    """Write the float model's tensors into a file until it is full; return the images that were run.

    The session is closed on return: of a ViT-L, both sessions at once took 4.1 GiB, one takes 3.3.
    """
    session = open_observing_session(model, names, threads=threads)
    done = []
    for image in images:  # one at a time: of eight, ViT-L's tensors take 1.4 GB
        for tensor in session.run(names, {session.get_inputs()[0].name: image}):
            np.save(file, tensor, allow_pickle=False)
        done.append(image)
        if file.tell() >= MOST_WAITING:
            break
    return done


# --- Activations outside the ranges ---


@dataclass(frozen=True)
class LayerClipping:
    """Activations of one layer's input that its range cuts off."""

    share: float  # of all activations, 0 to 1
    images: tuple[int, ...]  # indices of the images with the largest share, worst first


def measure_clipping(
    model: ir.Model, plan: QuantizationPlan, images: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, LayerClipping]:
    """Return, by linear layer, the share of the float model's activations outside the ranges of a plan.

    Layers in float are left out, and layers with one scale per token, whose range no image can exceed.

    Args:
        model: the canonical float32 graph.
        plan: the plan with the ranges.
        images: batches of `uint8 [N, H, W, 3]`.
        threads: CPU threads; None takes every core that this process may use.
    """
    if plan.target == "npu":
        return _measure_npu_clipping(prepare_for_npu(model, plan.balance), plan, images, threads)
    layers = find_layers(model)
    ranges = {
        name: each.input
        for name, each in plan.linears.items()
        if each.input is not None and each.per_token is None and name in layers.linears
    }
    if not ranges:
        return {}
    tensors = {name: str(layers.linears[name].input.name) for name in ranges}
    names = list(dict.fromkeys(tensors.values()))
    divisors = {
        linear.name: np.array(plan.balance[group.name].scales, np.float32)
        for group in find_balance_groups(layers)
        if group.name in plan.balance
        for linear in group.linears
    }
    shares: dict[str, list[float]] = {name: [] for name in ranges}
    for tensors_of_image in run_each(model, names, images, threads=threads):
        found = dict(zip(names, tensors_of_image, strict=True))
        for name, chosen in ranges.items():
            clipped = find_clipped(found[tensors[name]] / divisors.get(name, 1.0), chosen)
            # The range is not for the features that are multiplied in float.
            clipped = np.delete(clipped, list(plan.linears[name].float_columns), axis=-1)
            shares[name].append(float(clipped.mean()))
    return {name: _summarize(each) for name, each in shares.items()}


def _measure_npu_clipping(
    model: ir.Model, plan: QuantizationPlan, images: Iterable[Array], threads: int | None
) -> Mapping[str, LayerClipping]:
    groups, layers = group_tensors(model), find_layers(model)
    tensors = {name: str(linear.input.name) for name, linear in layers.linears.items()}
    shares: dict[str, list[float]] = {name: [] for name in tensors}
    for found in run_each(model, list(tensors.values()), images, threads=threads):
        for (name, tensor), values in zip(tensors.items(), found, strict=True):
            shares[name].append(float(find_clipped(values, plan.activations[groups[tensor]]).mean()))
    return {name: _summarize(each) for name, each in shares.items()}


def find_clipped(values: Array, chosen: Range) -> Array:
    """Return which values lie more than one step outside a range, as `bool` of the same shape.

    Rounding alone is off by half a step. GELU's values pile up at its minimum, -0.17: a range that ended
    half a step above cut 2.4 % of them, each by 0.3 % of a step more than rounding does.
    """
    low, high = ((end - chosen.zero_point) * chosen.scale for end in (0, chosen.largest))
    return np.asarray((values < low - chosen.scale) | (values > high + chosen.scale))


def _summarize(shares: list[float]) -> LayerClipping:
    order = np.argsort(-np.array(shares), kind="stable")[:3]
    return LayerClipping(float(np.mean(shares)), tuple(int(index) for index in order if shares[index] > 0))
