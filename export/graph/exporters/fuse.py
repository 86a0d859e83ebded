"""Recognize GELU and LayerNorm written out in small operators: one node each, as in opset 20 and 17."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    attribute,
    constant,
    graph_of,
    input_constant,
    insert,
    only_reader,
    producer,
    replace,
    rewrite_each,
    scalar,
    sizes,
)
from export.graph.skipped import skip

# --- GELU ---

# Where an activation is compared: beyond 9 in magnitude a GELU is 0 or x, to float32's precision.
GRID = np.concatenate([np.linspace(-9, 9, 721), [-30.0, 30.0]])
TOLERANCE = 2e-6  # constants such as √2 are written with six to eight digits
STEPS = 8  # operators of a GELU above or below its Erf or Tanh, at most

erf = np.vectorize(math.erf)
ELEMENT_WISE: dict[str, Callable[..., Array]] = {
    "Tanh": np.tanh,
    "Erf": erf,
    "Neg": np.negative,
    "Identity": np.positive,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}
# x · Φ(x) with Φ of the normal distribution, and its approximation by tanh (arXiv 1606.08415, section 2).
GELUS = {
    "Erf": ("none", 0.5 * GRID * (1 + erf(GRID / math.sqrt(2)))),
    "Tanh": ("tanh", 0.5 * GRID * (1 + np.tanh(math.sqrt(2 / math.pi) * (GRID + 0.044715 * GRID**3)))),
}


def fuse_gelu(model: ir.Model) -> int:
    """0.5 · x · (1 + erf(x / √2)), in any order and grouping → Gelu; the tanh form → its approximate="tanh".

    A group of element-wise operators around an Erf or a Tanh is recognized by its values, not by its
    operators: exporters write a GELU in a dozen ways.
    """
    return rewrite_each(model, {"Erf Tanh": _fuse_gelu_around})


def _fuse_gelu_around(node: ir.Node) -> bool:
    """Fuse a value x above the node, and the node below it that computes GELU(x)."""
    approximate, expected = GELUS[node.op_type]
    for last, source in itertools.product(_below(node), _above(node)):
        with np.errstate(all="ignore"):
            values = _evaluate(last.outputs[0], source)
        if values is not None and np.allclose(values, expected, rtol=TOLERANCE, atol=TOLERANCE):
            name, shape = f"{node.name}.gelu", sizes(last.outputs[0])
            fused = insert(last, "Gelu", [source], name=name, shape=shape, approximate=approximate)
            replace(last.outputs[0], fused)
            return True
    # A Tanh alone is an activation of its own, that of the pooler for example.
    return node.op_type == "Erf" and skip(node, "the operators around it do not give the values of a GELU")


def _below(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the element-wise operators behind the node, as far as each is the only reader of the last one."""
    for _ in range(STEPS):
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type not in ELEMENT_WISE:
            return
        node = reader
        yield node


def _above(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that the node is computed from by element-wise operators, nearest first."""
    queue, seen = [value for value in node.inputs if value is not None], set[ir.Value]()
    for value in queue:  # which grows during the walk
        if value in seen or constant(value) is not None or len(seen) > 2 * STEPS:
            continue
        seen.add(value)
        yield value
        if (above := producer(value, *ELEMENT_WISE)) is not None:
            queue += [each for each in above.inputs if each is not None]


def _evaluate(output: ir.Value, source: ir.Value, depth: int = 2 * STEPS) -> Array | None:
    """`output` as a function of `source` alone, on the grid; None when it depends on anything else."""
    if output is source:
        return GRID
    if (number := scalar(output)) is not None:
        return np.full_like(GRID, number)
    node = output.producer()
    if node is None or not depth:
        return None
    inputs = [_evaluate(value, source, depth - 1) for value in node.inputs if value is not None]
    operands = [each for each in inputs if each is not None]
    if len(operands) != len(inputs) or node.op_type not in ELEMENT_WISE:
        return None
    return np.asarray(ELEMENT_WISE[node.op_type](*operands))


# --- LayerNorm ---


def fuse_layer_norm(model: ir.Model) -> int:
    """(x - mean x) / √(mean (x - mean x)² + ε) · w + b over the last axis → LayerNormalization(x, w, b).

    Equations 3 and 4 of arXiv 1607.06450, with the ε of every library.
    """
    return rewrite_each(model, {"Sqrt Pow": _fuse_layer_norm_around})


def _fuse_layer_norm_around(root: ir.Node) -> bool:
    """Fuse the LayerNorm around a √(variance + ε) or its reciprocal, which is the power -0.5."""
    exponent = scalar(root.inputs[1]) if root.op_type == "Pow" else 0.5
    total = producer(root.inputs[0], "Add")
    if exponent not in (0.5, -0.5) or total is None:
        return False
    epsilon, variance = _split_scalar(total)
    if epsilon is None or producer(variance, "ReduceMean") is None:
        return False
    source = _find_centered(_find_squared(_find_averaged(variance)))
    if source is None or (width := (sizes(source) or [None])[-1]) is None:
        return skip(root, "it is no standard deviation over the last axis around the mean of that axis")
    scaled = _find_quotient(root.outputs[0], source, reciprocal=exponent < 0)
    if scaled is None:
        return skip(root, "something else than the centered values is divided by the deviation, or reads it")
    last, weight = _find_parameter(scaled, "Mul")
    inputs = [source, weight]
    if weight is None:
        inputs[1] = add_constant(graph_of(root), f"{root.name}.ones", np.ones(width, np.float32))
    else:
        last, bias = _find_parameter(last, "Add")
        inputs += [] if bias is None else [bias]
    name, shape = f"{root.name}.layer_norm", sizes(last.outputs[0])
    fused = insert(last, "LayerNormalization", inputs, name=name, shape=shape, axis=-1, epsilon=epsilon)
    replace(last.outputs[0], fused)
    return True


def _split_scalar(node: ir.Node) -> tuple[float | None, ir.Value | None]:
    """Return the constant number among two inputs, and the other input."""
    numbers = [scalar(value) for value in node.inputs]
    if numbers.count(None) != 1:
        return None, None
    index = numbers.index(None)
    return numbers[1 - index], node.inputs[index]


def _find_averaged(value: ir.Value | None) -> ir.Value | None:
    """Return x if the value is mean x over the last axis, which is kept."""
    node = producer(value, "ReduceMean")
    if node is None or not attribute(node, "keepdims", 1):
        return None
    axes = input_constant(node, 1)  # an attribute before opset 18
    listed = list(attribute(node, "axes", ())) if axes is None else axes.reshape(-1).tolist()
    shape = sizes(node.inputs[0])
    if shape is None or shape[-1] is None or listed not in ([-1], [len(shape) - 1]):
        return None
    return node.inputs[0]


def _find_squared(value: ir.Value | None) -> ir.Value | None:
    """Return x if the value is x²."""
    node = producer(value, "Pow", "Mul")
    if node is None:
        return None
    squares = scalar(node.inputs[1]) == 2.0 if node.op_type == "Pow" else node.inputs[0] is node.inputs[1]
    return node.inputs[0] if squares else None


def _find_centered(value: ir.Value | None) -> ir.Value | None:
    """Return x if the value is x - mean x."""
    node = producer(value, "Sub")
    return node.inputs[0] if node is not None and _find_averaged(node.inputs[1]) is node.inputs[0] else None


def _find_quotient(root: ir.Value, source: ir.Value, *, reciprocal: bool) -> ir.Node | None:
    """Return the node that computes (x - mean x) / root, or (x - mean x) · (1 / root)."""
    reader = only_reader(root)
    if reader is None:
        return None
    inverts = reader.op_type == "Reciprocal" or (reader.op_type == "Div" and scalar(reader.inputs[0]) == 1.0)
    if inverts and not reciprocal:
        return _find_quotient(reader.outputs[0], source, reciprocal=True)
    if reader.op_type != ("Mul" if reciprocal else "Div"):
        return None
    # Only a product may have the deviation on either side; one that is divided is not centered.
    index = 1 if reciprocal and reader.inputs[0] is root else 0
    return reader if _find_centered(reader.inputs[index]) is source else None


def _find_parameter(node: ir.Node, op_type: str) -> tuple[ir.Node, ir.Value | None]:
    """Return the only reader and its parameter `[width]`, a weight or a bias; or the node, without one."""
    (value,) = node.outputs
    reader, shape = only_reader(value), sizes(value)
    if reader is None or reader.op_type != op_type or shape is None:
        return node, None
    (parameter,) = [each for each in reader.inputs if each is not value] or [None]
    array = constant(parameter)
    return (node, None) if array is None or array.shape != (shape[-1],) else (reader, parameter)
