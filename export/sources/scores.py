"""Outputs that are no logits: a softmax or sigmoid at the end is taken off, as the runtime takes one.

Others are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, rename, tidy
from export.graph.float_model import OUTPUT
from export.sources.onnx_description import OnnxModelError

MOVES = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Dropout")
# Operators on one computed tensor, whose result is that of a softmax or a sigmoid no longer.
CHANGES = ("Add", "Sub", "Mul", "Div", "Neg", "Log", "Slice", "Gather", "Pow")
# Operators that make no logits of scores either: the mean of two models or views, one side and the other.
# FOLDS and MOVES take data from their first input; the others are sizes and places.
_FOLDS = "Transpose Expand Tile Pad Split CumSum ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd"
FOLDS = (*_FOLDS.split(), "Slice", "Gather")
MIXES = ("Concat", "Mean", "Sum", "Where", "Relu", "LeakyRelu")
SINGLE = 'each class is scored for itself; for several labels per image add "thresholds": 0.5 to --preprocess'
_OTHERS = (
    "Tanh Clip Min Max Exp Softplus Softsign Erf Reciprocal Sqrt Abs LpNormalization Hardmax ArgMax ArgMin "
    "TopK Round Sign Floor Ceil Equal Greater GreaterOrEqual Less LessOrEqual OneHot Div"
)
NO_LOGITS = dict.fromkeys(_OTHERS.split(), "its results are no row of logits")
NO_LOGITS |= {"Sigmoid": SINGLE, "HardSigmoid": SINGLE}
SAME = 1e-4  # of a probability: float32 rounding
ADVICE = "export the model again so that it ends in the linear layer that gives the logits"
MANY_NUMBERS = 256  # numbers, from which it is no chance that all lie within 0 and 1


def remove_activation(
    model: ir.Model, path: Path, run: Callable[[ir.Model], Array], *, several: bool = False
) -> None:
    """Take off the softmax at the end of a model, in place, where the runtime's own gives the same scores.

    With `several` labels per image it is a sigmoid. `run` gives the output for a few images, `[N, classes]`.

    Raises:
        OnnxModelError: naming the operator at the end whose results are no logits.
    """
    node, crossed, value = _end(model)
    if node is None:
        return
    logits = _logits_of(node)
    if several and node.op_type == "Sigmoid" and not crossed and node.inputs[0] is not None:
        _replace_output(model, value, node.inputs[0])
        return
    if several or logits is None or [each.op_type for each in crossed] not in ([], ["Log"]):
        _refuse(node, crossed, path, softmax=logits is not None)
        return
    last = crossed[-1].outputs[0] if crossed else value
    log = bool(crossed) or node.op_type == "LogSoftmax"
    before = run(model).astype(np.float64)
    _replace_output(model, last, logits)
    with np.errstate(over="ignore"):
        scores = np.exp(before) if log else before
    found = run(model).astype(np.float64)
    found = np.exp(found - found.max(axis=-1, keepdims=True))
    found /= found.sum(axis=-1, keepdims=True)
    if found.shape != scores.shape or not np.abs(found - scores).max() <= SAME:
        what = f"{node.op_type} ({node.name}) ends the model, and its scores"
        raise OnnxModelError(f"{path}: {what} are not a softmax over the classes; {ADVICE}")


def expect_logits(outputs: Array) -> None:
    """Refuse outputs `[N, classes]` that are scores already, whatever operators made them.

    Raises:
        OnnxModelError: when every row lies within 0 and 1 and sums to 1, or very many numbers all lie there.
    """
    if outputs.size < 4 or not (outputs.min() >= -SAME and outputs.max() <= 1 + SAME):
        return
    what = f"its outputs for {len(outputs)} images all lie within 0 and 1"
    if np.abs(outputs.astype(np.float64).sum(axis=1) - 1).max() <= 10 * SAME:
        raise OnnxModelError(f"{what} and sum to 1, so they are probabilities and no logits; {ADVICE}")
    if outputs.size >= MANY_NUMBERS:
        raise OnnxModelError(f"{what}, as a sigmoid's do, so they are scores and no logits; {ADVICE}")


def _end(model: ir.Model) -> tuple[ir.Node | None, list[ir.Node], ir.Value]:
    """Walk up to the operator that makes the scores: return it, what changed its result, and its result."""
    value, crossed = model.graph.outputs[0], list[ir.Node]()
    while (node := value.producer()) is not None:
        computed = _data_inputs(node)
        passes = node.op_type in (*MOVES, *CHANGES) and len({*computed}) == 1
        if not passes or _divides(node, computed):
            return node, crossed, value
        if node.op_type in CHANGES:
            crossed.append(node)
        value = computed[0]
    return None, crossed, value


def _scores_behind(value: ir.Value) -> ir.Node | None:
    """Return an operator that makes scores, where nothing else reaches the output; None for logits."""
    visited, waiting, found = set[ir.Value](), [value], None
    while waiting:
        each = waiting.pop()
        node = each.producer()
        if each in visited or node is None:
            continue
        visited.add(each)
        computed = _data_inputs(node)
        passes = node.op_type in (*MOVES, *CHANGES, *FOLDS, *MIXES) and not _divides(node, computed)
        if not passes and node.op_type not in (*NO_LOGITS, "Softmax", "LogSoftmax"):
            return None
        found = found if passes else node
        waiting += computed if passes else []
    return found


def _divides(node: ir.Node, computed: list[ir.Value]) -> bool:
    """Return whether a computed number is divided by, as in 1 / (1 + exp(-x)) or x / |x|."""
    return node.op_type == "Div" and node.inputs[1] in computed


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the data that an operator reads, without constants, sizes and places."""
    data = node.inputs[:1] if node.op_type in (*MOVES, *FOLDS) else node.inputs
    return [each for each in data if each is not None and _is_computed(each)]


def _is_computed(value: ir.Value) -> bool:
    """Return whether a value depends on the input of the graph."""
    visited, waiting = set[ir.Value](), [value]
    while waiting:
        each = waiting.pop()
        if each.is_graph_input():
            return True
        node = None if each in visited else each.producer()
        visited.add(each)
        waiting += [] if node is None else [one for one in node.inputs if one is not None]
    return False


def _logits_of(node: ir.Node) -> ir.Value | None:
    """Return what a softmax reads, written out or not; None for any other operator."""
    if node.op_type in ("Softmax", "LogSoftmax"):
        return node.inputs[0]
    if node.op_type == "Exp":  # of logarithms of probabilities: these are logits themselves
        below = _producer(node.inputs[0])
        return below.inputs[0] if below is not None and below.op_type == "LogSoftmax" else node.inputs[0]
    if node.op_type not in ("Div", "Mul"):
        return None
    for first, second in (node.inputs, node.inputs[::-1]):
        exponential, total = _producer(first), _producer(second)
        if node.op_type == "Mul" and total is not None and total.op_type == "Reciprocal":
            total = _producer(total.inputs[0])
        if exponential is None or total is None or exponential.op_type != "Exp":
            continue
        if total.op_type == "ReduceSum" and _producer(total.inputs[0]) is exponential:
            return exponential.inputs[0]
    return None


def _producer(value: ir.Value | None) -> ir.Node | None:
    """Return the operator that computes a value, behind those that only move it."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in (*MOVES, "Expand"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node


def _replace_output(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    if old is model.graph.outputs[0]:
        model.graph.outputs[0] = new
        new.type, new.shape = new.type or old.type, new.shape or old.shape
    old.replace_all_uses_with(new)
    rename(model.graph, model.graph.outputs[0], OUTPUT)
    tidy(model)


def _refuse(node: ir.Node, crossed: list[ir.Node], path: Path, *, softmax: bool) -> None:
    scores = node if softmax else _scores_behind(node.outputs[0])
    if scores is None:
        return
    later = [*reversed(crossed)] if scores is node else [node, *reversed(crossed)]
    after = f", followed by {', '.join(each.op_type for each in later)}" if later else ""
    meaning = f": {NO_LOGITS[scores.op_type]}" if scores.op_type in NO_LOGITS and not softmax else ""
    raise OnnxModelError(f"{path}: {scores.op_type} ({scores.name}) ends the model{after}{meaning}; {ADVICE}")
