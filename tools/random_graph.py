"""A graph that grows by random nodes, for property tests of passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from tools.small_graphs import build

BATCH = 2


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
