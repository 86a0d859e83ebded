"""Bias corrections (Nagel et al., arXiv 1906.04721, section 4.2), one linear after the other.

The mean error of each linear's output is measured while its input is what the INT8 layers before it give,
their own corrections included: so it takes away the mean of all errors up to there. The INT8 graph is run in
pieces, each up to the next linear, and the tensors between two pieces are kept for every image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, sizes
from calibration.graph.layers import find_layers
from calibration.graph.memory import open_graph_session, release_memory
from calibration.observe import HOLD_EVERY, run_each
from calibration.plan import QuantizationPlan, round_numbers
from calibration.write import write_plan

CORRECTION_IMAGES = 128  # with 48, five flowers have 32.5 dB instead of 36.8
MOST_KEPT = 2**28  # bytes of the largest tensor of all images; a few more of their size are kept beside it
LEAST_IMAGES = 8


@dataclass(frozen=True)
class _Piece:
    """A part of a graph that ends at the outputs of linears which do not depend on each other."""

    linears: tuple[str, ...]
    graph: ir.Graph
    live: tuple[str, ...]  # tensors that pieces after this one read


def correct_biases(
    model: ir.Model, plan: QuantizationPlan, images: Sequence[Array], *, threads: int | None = None
) -> QuantizationPlan:
    """Return the plan with a correction for each int8 linear, where the held-out images confirm it.

    Args:
        model: the canonical float graph.
        plan: of this graph, for a CPU; corrections and merging that it has are dropped.
        images: `uint8 [1, H, W, 3]` each. Three of four give the corrections, the others judge them.
        threads: CPU threads; None takes every core that this process may use.
    """
    bare = {name: replace(each, correction=()) for name, each in plan.linears.items()}
    plan = replace(plan, linears=bare, merging={})
    written = write_plan(model, plan)
    names, inputs = _find_outputs(model, written, plan)
    if not names:
        return plan
    exact: list[dict[str, Array]] = []  # the mean of each output, by linear, of each image
    for outputs in run_each(model, list(names.values()), images, threads=threads):
        exact.append({name: _mean(tensor) for name, tensor in zip(names, outputs, strict=True)})
        if len(exact) >= max(LEAST_IMAGES, MOST_KEPT // max(tensor.nbytes for tensor in outputs)):
            break
    release_memory(model)
    corrected = dict(plan.linears)
    live = [{str(written.graph.inputs[0].name): image} for image in images[: len(exact)]]
    for piece in _cut(written, names, inputs):
        live = _run(piece, live, plan, threads)
        for name in piece.linears:
            scales = np.array(plan.balance[name].scales) if name in plan.balance else 1.0
            pairs = zip(exact, live, strict=True)
            errors = [means[name] / scales - _mean(tensors[names[name]]) for means, tensors in pairs]
            if (shift := _choose_shift(np.array(errors))) is None:
                continue
            corrected[name] = replace(corrected[name], correction=tuple(shift.tolist()))
            for tensors in live:
                tensors[names[name]] = tensors[names[name]] + shift.astype(np.float32)
    return replace(plan, linears=corrected)


def _find_outputs(
    model: ir.Model, written: ir.Model, plan: QuantizationPlan
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of the output and of the input of each int8 linear.

    A linear some of whose outputs are split off is left out.
    """
    values = ir.convenience.create_value_mapping(written.graph)
    outputs, inputs = {}, {}
    for name, linear in find_layers(model).linears.items():
        output = linear.node.outputs[0]
        whole = sizes(values[str(output.name)]) == sizes(output)
        if whole and name in plan.linears and plan.linears[name].precision == "int8":
            outputs[name], inputs[name] = str(output.name), str(linear.input.name)
    return outputs, inputs


def _choose_shift(errors: Array) -> Array | None:
    """Return the mean error of the images that are fitted, `[features]`, if it is less on the others.

    Args:
        errors: `float64 [images, features]`.
    """
    held = np.arange(len(errors)) % HOLD_EVERY == HOLD_EVERY - 1
    shift = np.array(round_numbers(errors[~held].mean(axis=0)))
    before = errors[held if held.any() else ~held].mean(axis=0)
    return shift if np.square(before - shift).sum() < np.square(before).sum() else None


def _cut(model: ir.Model, names: Mapping[str, str], inputs: Mapping[str, str]) -> Iterator[_Piece]:
    """Yield the graph in pieces, each up to the outputs of linears that read the same tensor."""
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph)
    done: set[ir.Node] = set()
    live: list[ir.Value] = list(graph.inputs)
    for _, group in groupby(names, key=inputs.__getitem__):
        linears = tuple(group)
        ends = [values[names[name]] for name in linears]
        done |= _find_above(ends, done)
        before, live = live, _find_live(graph, done)
        fresh = [value for value in live if value not in before]
        yield _Piece(
            linears,
            ir.convenience.extract(graph, before, fresh),
            tuple(str(value.name) for value in live),
        )


def _find_above(ends: Sequence[ir.Value], done: set[ir.Node]) -> set[ir.Node]:
    """Return the nodes that compute these values and are not done."""
    found: set[ir.Node] = set()
    waiting = [value.producer() for value in ends]
    while waiting:
        node = waiting.pop()
        if node is None or node in done or node in found:
            continue
        found.add(node)
        waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _find_live(graph: ir.Graph, done: set[ir.Node]) -> list[ir.Value]:
    """Return the values that are known once these nodes have run, and that other nodes read."""
    known = [*graph.inputs, *(value for node in graph if node in done for value in node.outputs)]
    return [
        value
        for value in known
        if value.is_graph_output() or any(use.node not in done for use in value.uses())
    ]


def _run(
    piece: _Piece, live: Sequence[Mapping[str, Array]], plan: QuantizationPlan, threads: int | None
) -> list[dict[str, Array]]:
    """Run a piece over the tensors of each image, and return those that later pieces read."""
    session = open_graph_session(ir.Model(piece.graph, ir_version=10), threads=threads, target=plan.target)
    fed = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    found = []
    for tensors in live:
        fresh = session.run(outputs, {name: tensors[name] for name in fed})
        known = {**tensors, **dict(zip(outputs, fresh, strict=True))}
        found.append({name: known[name] for name in piece.live})
    return found


def _mean(tensor: Array) -> Array:
    """Return the mean over all rows, `float64 [features]`."""
    return np.asarray(tensor.reshape(-1, tensor.shape[-1]).mean(axis=0, dtype=np.float64))
