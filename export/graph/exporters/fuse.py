"""GELU and LayerNorm written out in small operators → one node each, as opset 20 and 17 have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    only_reader,
    replace,
    scalar,
    sizes,
    tidy,
)

GRID = np.concatenate([np.linspace(-9, 9, 721), [-30.0, 30.0]])  # where an activation is told by its values
TOLERANCE = 2e-6  # constants such as √2 are written with six to eight digits
STEPS = 8  # how many operators a GELU may be made of, above or below its Erf or Tanh

UNARY: dict[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "Erf": lambda x: np.vectorize(math.erf)(x),
    "Neg": np.negative,
    "Identity": lambda x: x,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def fuse_gelu(model: ir.Model) -> int:
    """0.5 · x · (1 + erf(x / √2)), in any order and grouping → Gelu; the tanh form → its approximate="tanh".

    A group of element-wise operators around an Erf or a Tanh is known by the values it gives, not by how it
    is written down: exporters have a dozen ways.
    """
    changes = 0
    for node in by_type(model, "Erf", "Tanh"):
        exact = node.op_type == "Erf"
        found = _gelu_around(node, gelu if exact else gelu_tanh)
        if found is None:
            continue
        source, output = found
        last = output.producer()
        assert last is not None  # it was found below the Erf
        fused = insert(
            last,
            "Gelu",
            [source],
            name=f"{node.name}.gelu",
            shape=sizes(output),
            approximate="none" if exact else "tanh",
        )
        replace(output, fused)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _gelu_around(node: ir.Node, function: Callable[[Array], Array]) -> tuple[ir.Value, ir.Value] | None:
    """(x, function(x)) among the values above and below the node."""
    for output in _below(node):
        for source in _above(node):
            with np.errstate(all="ignore"):
                values = _evaluate(output, source)
            if values is not None and np.allclose(values, function(GRID), rtol=TOLERANCE, atol=TOLERANCE):
                return source, output
    return None


def _below(node: ir.Node) -> Iterator[ir.Value]:
    for _ in range(STEPS):
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type not in BINARY | UNARY:
            return
        node = reader
        yield node.outputs[0]


def _above(node: ir.Node) -> Iterator[ir.Value]:
    """The values that the node is computed from, nearest first."""
    queue, seen = [value for value in node.inputs if value is not None], set[ir.Value]()
    for value in queue:
        if value in seen or constant(value) is not None or len(seen) > 2 * STEPS:
            continue
        seen.add(value)
        yield value
        producer = value.producer()
        if producer is not None and producer.op_type in BINARY | UNARY:
            queue += [each for each in producer.inputs if each is not None]


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
    if len(operands) != len(inputs):
        return None
    if node.op_type in UNARY and len(operands) == 1:
        return UNARY[node.op_type](operands[0])
    if node.op_type in BINARY and len(operands) == 2:
        return np.asarray(BINARY[node.op_type](operands[0], operands[1]))
    return None


def fuse_layer_norm(model: ir.Model) -> int:
    """(x - mean x) / √(mean (x - mean x)² + ε) · w + b over the last axis → LayerNormalization(x, w, b)."""
    changes = 0
    for root in by_type(model, "Sqrt", "Pow"):
        found = _normalized(root)
        if found is None:
            continue
        source, epsilon, output = found
        output, weight = _affine(output, "Mul")
        bias = None
        if weight is not None:
            output, bias = _affine(output, "Add")
        last, width = output.producer(), sizes(source)
        assert last is not None  # _normalized has looked, at all three
        assert width is not None
        assert width[-1] is not None
        if weight is None:
            weight = add_constant(graph_of(root), f"{root.name}.ones", np.ones(width[-1], np.float32))
        inputs = [source, weight] if bias is None else [source, weight, bias]
        name = f"{root.name}.layer_norm"
        fused = insert(
            last, "LayerNormalization", inputs, name=name, shape=sizes(output), axis=-1, epsilon=epsilon
        )
        replace(output, fused)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _normalized(root: ir.Node) -> tuple[ir.Value, float, ir.Value] | None:
    """(x, ε, x normalized) around a √(variance + ε) or its reciprocal, or None."""
    exponent = scalar(root.inputs[1]) if root.op_type == "Pow" else 0.5
    total = root.inputs[0].producer() if root.inputs[0] is not None else None
    if exponent not in (0.5, -0.5) or total is None or total.op_type != "Add":
        return None
    epsilon, variance = _scalar_and_rest(total)
    squared = _mean_of(variance)
    centered = _square_of(squared)
    source = _centered_source(centered)
    if source is None or epsilon is None:
        return None
    scaled = _divided(root.outputs[0], source, reciprocal=exponent < 0)
    return None if scaled is None else (source, epsilon, scaled)


def _scalar_and_rest(node: ir.Node) -> tuple[float | None, ir.Value | None]:
    numbers = [scalar(value) for value in node.inputs]
    if numbers.count(None) != 1:
        return None, None
    index = numbers.index(None)
    return numbers[1 - index], node.inputs[index]


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """Return the value whose mean over the last axis this is, or None; the axis must be kept."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1):
        return None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed = list(attribute(node, "axes", ())) if axes is None else axes.reshape(-1).tolist()
    shape = sizes(node.inputs[0])
    if shape is None or shape[-1] is None or listed not in ([-1], [len(shape) - 1]):
        return None
    return node.inputs[0]


def _square_of(value: ir.Value | None) -> ir.Value | None:
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    return node.inputs[0] if node.op_type == "Mul" and node.inputs[0] is node.inputs[1] else None


def _centered_source(value: ir.Value | None) -> ir.Value | None:
    """x, when the value is x - mean x."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Sub" or _mean_of(node.inputs[1]) is not node.inputs[0]:
        return None
    return node.inputs[0]


def _divided(root: ir.Value, source: ir.Value, *, reciprocal: bool) -> ir.Value | None:
    """(x - mean x) / root, or (x - mean x) · (1 / root)."""
    reader = only_reader(root)
    if reader is None:
        return None
    if not reciprocal and reader.op_type == "Reciprocal":
        return _divided(reader.outputs[0], source, reciprocal=True)
    if not reciprocal and reader.op_type == "Div" and scalar(reader.inputs[0]) == 1.0:
        return _divided(reader.outputs[0], source, reciprocal=True)
    if reader.op_type != ("Mul" if reciprocal else "Div"):
        return None
    operands = [value for value in reader.inputs if value is not root]
    if not reciprocal and reader.inputs[1] is not root:
        return None
    return reader.outputs[0] if operands and _centered_source(operands[0]) is source else None


def _affine(value: ir.Value, op_type: str) -> tuple[ir.Value, ir.Value | None]:
    """The value after the weight or the bias that alone reads it, and that parameter `[width]`."""
    reader, shape = only_reader(value), sizes(value)
    if reader is None or reader.op_type != op_type or shape is None:
        return value, None
    operands = [each for each in reader.inputs if each is not value and each is not None]
    if len(operands) != 1 or (array := constant(operands[0])) is None or array.shape != (shape[-1],):
        return value, None
    return reader.outputs[0], operands[0]
