"""Passes on small graphs built by hand: what changes, and where a pass must leave the graph alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import tidy
from tests.support.small_graphs import op_types, run

Rewrite = Callable[..., int]


@pytest.fixture(scope="session")
def rewrite() -> Rewrite:
    """Run a pass in place, and check that the outputs stay; the number of places it changed.

    Where the pass says 0, the graph must be the same node for node. A second run must find nothing.
    """

    def check(each: Callable[[ir.Model], int], model: ir.Model, *arrays: np.ndarray) -> int:
        before = op_types(model), len(model.graph.initializers)
        expected = run(model, *arrays)
        changes = each(model)
        assert (op_types(model), len(model.graph.initializers)) == before or changes
        tidy(model)
        found = run(model, *arrays)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))
        assert each(model) == 0
        return changes

    return check


@pytest.fixture(scope="session")
def random() -> Callable[..., np.ndarray]:
    """Normal random numbers of a shape, float32."""

    def draw(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

    return draw
