"""Random small graphs of the operators that a Vision Transformer is made of, for property tests of passes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from tests.support.small_graphs import build

BATCH = 2
UNARY = ("Relu", "Gelu", "Tanh", "Erf", "Sigmoid", "Identity", "Neg", "Abs")


class RandomGraph:
    """A graph that grows node by node; every value keeps the number of images as its first axis, or not.

    Attributes:
        constants: the initializers so far.
        shapes: of the values so far, by name, for a batch of `BATCH`.
    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.constants: dict[str, ArrayLike] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (BATCH, 3, 4)}
        self.last = "x"

    def model(self, *, batch: str) -> ir.Model:
        """Return the graph from `x float [batch, 3, 4]` to `y`; "2" or a name for any number of images."""
        lines = [*self.lines, f"y = Identity({self.last})"]
        return build("\n".join(lines), self.constants, inputs=f"float[{batch}, 3, 4] x", outputs="float[] y")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the last value."""
        return self.shapes[self.last]

    def add(
        self, operator: str, *inputs: str, shape: tuple[int, ...], attributes: str = "", keep: bool = True
    ) -> str:
        """Add a node and return the name of its output, which is the last value from now on if `keep`."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {operator} {attributes} ({', '.join(inputs)})")
        self.shapes[name] = shape
        if keep:
            self.last = name
        return name

    def number(self, *values: int, scalar: bool = False) -> str:
        """Return an int64 constant of one axis, or of none."""
        return self.constant(np.array(values[0] if scalar else values, np.int64))

    def draw(self, *shape: int) -> str:
        """Return a constant of random numbers."""
        return self.constant(self.random.normal(size=shape).astype(np.float32))

    def constant(self, array: ArrayLike) -> str:
        """Return the name of a new constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def chance(self, share: float) -> bool:
        """Return True in this share of the cases."""
        return bool(self.random.random() < share)

    def one(self, *choices: str) -> str:
        """Return one of several words."""
        return choices[int(self.random.integers(len(choices)))]

    def upto(self, count: int) -> int:
        """Return a number from 0 to count - 1."""
        return int(self.random.integers(count))


def random_graph(seed: int, steps: int = 7) -> RandomGraph:
    """Return a graph of about so many random parts, the same one for the same seed."""
    graph = RandomGraph(seed)
    while len(graph.lines) < steps:
        part = PARTS[graph.upto(len(PARTS))]
        part(graph)
    return graph


def _unary(g: RandomGraph) -> None:
    g.add(g.one(*UNARY), g.last, shape=g.shape)


def _with_constant(g: RandomGraph) -> None:
    """A constant of any shape that broadcasts, on either side."""
    shape = [size if g.chance(0.6) else 1 for size in g.shape[1 + g.upto(2) :]]
    shape = [1] * g.upto(2) + shape
    rank = max(len(shape), len(g.shape))
    whole = np.broadcast_shapes(tuple(shape), g.shape)
    pair = [g.last, g.draw(*shape)]
    if rank > 5:
        return
    operator = g.one("Add", "Sub", "Mul")
    g.add(operator, *(pair if g.chance(0.7) else pair[::-1]), shape=tuple(whole))


def _with_scalar(g: RandomGraph) -> None:
    operand = g.constant(np.array(g.one("0", "1", "2", "0.5"), np.float32))
    if g.chance(0.3):
        operand = g.constant(np.array([g.one("1", "2")], np.float32))
    g.add(g.one("Add", "Mul"), g.last, operand, shape=g.shape)


def _residual(g: RandomGraph) -> None:
    same = [name for name, shape in g.shapes.items() if shape == g.shape]
    g.add(g.one("Add", "Mul"), g.last, same[g.upto(len(same))], shape=g.shape)


def _linear(g: RandomGraph) -> None:
    width, out = g.shape[-1], 1 + g.upto(5)
    shape = (*g.shape[:-1], out)
    g.add("MatMul", g.last, g.draw(width, out), shape=shape)
    if g.chance(0.7):
        bias = g.draw(*([1] * g.upto(2)), out) if g.chance(0.8) else g.draw(*shape[-2:-1], 1)
        pair = [g.last, bias]
        g.add("Add", *(pair if g.chance(0.5) else pair[::-1]), shape=shape)


def _left_linear(g: RandomGraph) -> None:
    if len(g.shape) >= 3:
        rows = 1 + g.upto(4)
        g.add("MatMul", g.draw(rows, g.shape[-2]), g.last, shape=(*g.shape[:-2], rows, g.shape[-1]))


def _gemm(g: RandomGraph) -> None:
    rows, width, out = math.prod(g.shape[:-1]), g.shape[-1], 1 + g.upto(5)
    flat = g.add("Reshape", g.last, g.number(-1, width), shape=(rows, width))
    turned = g.chance(0.3)
    biases = [(out,), (1, out), (1,), (rows, 1), (rows, out)][: 3 if g.chance(0.8) else 5]
    inputs = [flat, g.draw(*((out, width) if turned else (width, out)))]
    if g.chance(0.8):
        inputs.append(g.draw(*biases[g.upto(len(biases))]))
    scales = ", alpha = 0.5, beta = 2.0" if g.chance(0.2) else ""
    g.add("Gemm", *inputs, attributes=f"<transB = {int(turned)}{scales}>", shape=(rows, out))


def _transpose(g: RandomGraph) -> None:
    perm = [int(axis) for axis in g.random.permutation(len(g.shape))]
    if g.chance(0.2):
        perm, written = list(range(len(g.shape)))[::-1], ""
    else:
        written = f"<perm = {perm}>"
    g.add("Transpose", g.last, attributes=written, shape=tuple(g.shape[axis] for axis in perm))


def _reshape(g: RandomGraph) -> None:
    """Join or split axes, or others of as many numbers altogether."""
    size, target = math.prod(g.shape), list[int]()
    for _ in range(g.upto(4)):
        divisors = [each for each in range(1, 7) if size % each == 0]
        target.append(divisors[g.upto(len(divisors))])
        size //= target[-1]
    target.insert(g.upto(len(target) + 1), size)
    free = target.index(max(target))
    written = [-1 if axis == free and g.chance(0.7) else each for axis, each in enumerate(target)]
    g.add("Reshape", g.last, g.number(*written), shape=tuple(target))


def _gather(g: RandomGraph) -> None:
    if len(g.shape) < 2:
        return
    axis = 1 + g.upto(len(g.shape) - 1)
    place = g.upto(g.shape[axis]) - (g.shape[axis] if g.chance(0.2) else 0)
    index, extra = g.number(place, scalar=True), tuple[int, ...]()
    if g.chance(0.3):
        index, extra = g.number(place), (1,)
    elif g.chance(0.2):
        index, extra = g.constant(np.array([[place]])), (1, 1)
    shape = (*g.shape[:axis], *extra, *g.shape[axis + 1 :])
    g.add("Gather", g.last, index, attributes=f"<axis = {axis}>", shape=shape)


def _slice(g: RandomGraph) -> None:
    if len(g.shape) < 2:
        return
    axis = 1 + g.upto(len(g.shape) - 1)
    start = g.upto(g.shape[axis])
    shape = (*g.shape[:axis], 1, *g.shape[axis + 1 :])
    inputs = g.number(start), g.number(start + 1), g.number(axis - (len(shape) if g.chance(0.3) else 0))
    g.add("Slice", g.last, *inputs, shape=shape)


def _normalize(g: RandomGraph) -> None:
    if g.chance(0.5):
        axis = g.upto(len(g.shape)) - len(g.shape)
        g.add("Softmax", g.last, attributes=f"<axis = {axis}>", shape=g.shape)
        return
    axis = max(len(g.shape) - 1 - g.upto(2), 0)
    rest = g.shape[axis:]
    if math.prod(rest) > 1:  # of one number alone, the variance is zero
        parameters = g.draw(*rest), g.draw(*rest)
        g.add("LayerNormalization", g.last, *parameters, attributes=f"<axis = {axis}>", shape=g.shape)


def _mean(g: RandomGraph) -> None:
    if len(g.shape) < 2:
        return
    axis, kept = 1 + g.upto(len(g.shape) - 1), g.chance(0.4)
    shape = (*g.shape[:axis], *([1] if kept else []), *g.shape[axis + 1 :])
    g.add("ReduceMean", g.last, g.number(axis), attributes=f"<keepdims = {int(kept)}>", shape=shape)


def _axes_of_one(g: RandomGraph) -> None:
    if 1 in g.shape[1:] and g.chance(0.5):
        axis = g.shape.index(1, 1)
        g.add("Squeeze", g.last, g.number(axis), shape=(*g.shape[:axis], *g.shape[axis + 1 :]))
    elif len(g.shape) < 5:
        axis = g.upto(len(g.shape) + 1)
        g.add("Unsqueeze", g.last, g.number(axis), shape=(*g.shape[:axis], 1, *g.shape[axis:]))


def _integers(g: RandomGraph) -> None:
    """A detour through whole numbers, moved about."""
    g.add("Cast", g.last, attributes="<to = 7>", shape=g.shape)
    for _ in range(1 + g.upto(2)):
        (_transpose, _gather, _slice, _axes_of_one)[g.upto(4)](g)
    g.add("Cast", g.last, attributes="<to = 1>", shape=g.shape)


def _attention(g: RandomGraph) -> None:
    """softmax(c q kᵀ) v of three linears with heads, with the scale in one of four places."""
    if len(g.shape) != 3:
        return
    n, tokens, width = g.shape
    source, heads, size = g.last, 1 + g.upto(2), 2
    parts = []
    for _ in range(3):
        part = g.add("MatMul", source, g.draw(width, heads * size), shape=(n, tokens, heads * size))
        part = g.add("Add", part, g.draw(heads * size), shape=g.shape)
        part = g.add("Reshape", part, g.number(-1, tokens, heads, size), shape=(n, tokens, heads, size))
        parts.append(
            g.add("Transpose", part, attributes="<perm = [0, 2, 1, 3]>", shape=(n, heads, tokens, size))
        )
    query, key, value = parts
    place = g.upto(4)
    scale = g.constant(np.float32(0.5))
    key = g.add("Transpose", key, attributes="<perm = [0, 1, 3, 2]>", shape=(n, heads, size, tokens))
    if place == 0:
        query = g.add("Mul", query, scale, shape=(n, heads, tokens, size))
    if place == 1:
        key = g.add("Div", key, scale, shape=(n, heads, size, tokens))
    scores = g.add("MatMul", query, key, shape=(n, heads, tokens, tokens))
    if place == 2:
        scores = g.add("Mul", scale, scores, shape=g.shape)
    shares = g.add("Softmax", scores, attributes="<axis = -1>", shape=g.shape)
    g.add("MatMul", shares, value, shape=(n, heads, tokens, size))
    g.add("Transpose", g.last, attributes="<perm = [0, 2, 1, 3]>", shape=(n, tokens, heads, size))
    g.add("Reshape", g.last, g.number(-1, tokens, heads * size), shape=(n, tokens, heads * size))


def _joined_parts(g: RandomGraph) -> None:
    """One linear for several parts, which are taken apart behind one or two Reshapes."""
    if len(g.shape) != 3:
        return
    n, tokens, width = g.shape
    count, heads, size = 2 + g.upto(2), 1 + g.upto(2), 2
    features = count * heads * size
    g.add("MatMul", g.last, g.draw(width, features), shape=(n, tokens, features))
    bias = g.draw(features) if tokens != features or g.chance(0.5) else g.draw(features, 1)
    joined = g.add("Add", g.last, bias, shape=g.shape)
    if g.chance(0.5):
        joined = g.add(
            "Reshape",
            joined,
            g.number(n, tokens, count * heads, size),
            shape=(n, tokens, count * heads, size),
        )
    first = (n, tokens, count, heads, size) if g.chance(0.5) else (n, tokens, heads, count, size)
    axis = first.index(count, 2) if first[2] == count else 3
    joined = g.add("Reshape", joined, g.number(*first), shape=first)
    shape = (*first[:axis], *first[axis + 1 :])
    parts = [
        g.add("Gather", joined, g.number(i, scalar=True), attributes=f"<axis = {axis}>", shape=shape)
        for i in range(count)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = g.add(g.one("Add", "Mul"), total, part, shape=shape)
    g.add("Reshape", total, g.number(n, tokens, heads * size), shape=(n, tokens, heads * size))


PARTS: tuple[Callable[[RandomGraph], None], ...] = (
    _unary,
    _with_constant,
    _with_scalar,
    _residual,
    _linear,
    _linear,
    _left_linear,
    _gemm,
    _transpose,
    _transpose,
    _reshape,
    _gather,
    _slice,
    _normalize,
    _mean,
    _axes_of_one,
    _integers,
    _attention,
    _joined_parts,
)
