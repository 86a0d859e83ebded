"""Every exact rewrite on random small graphs: the outputs before and after are the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError, tidy
from export.graph.canonicalize import (
    ANY_BATCH_REWRITES,
    CANONICAL_REWRITES,
    FIXED_BATCH_REWRITES,
    canonicalize,
)
from export.graph.exporters.batch import free_batch
from tests.support.random_graphs import BATCH, random_graph
from tests.support.small_graphs import op_types, run

GRAPHS, AT_A_TIME = 200, 20
WITH_FIXED_BATCH = tuple(each for each in FIXED_BATCH_REWRITES if each is not free_batch)
Pass = Callable[[ir.Model], object]


def images(count: int = BATCH) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 4)).astype(np.float32)


def check(each: Pass, model: ir.Model, expected: np.ndarray) -> bool:
    """Run a pass on a copy and compare; whether it changed the graph."""
    changed = model.clone()
    tidy(changed)
    before = op_types(changed)
    each(changed)
    tidy(changed)
    found = run(changed, images())
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), each
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())), err_msg=str(each)
    )
    return op_types(changed) != before


@pytest.mark.parametrize("first", range(0, GRAPHS, AT_A_TIME))
def test_the_outputs_stay(first: int) -> None:
    """For any number of images the canonical passes, for two also those of other exporters' graphs."""
    changes = 0
    for seed in range(first, first + AT_A_TIME):
        graph = random_graph(seed)
        if seed % 2:
            model, passes = graph.model(batch="N"), (*CANONICAL_REWRITES, canonicalize)
        else:
            model, passes = graph.model(batch=str(BATCH)), (*WITH_FIXED_BATCH, *ANY_BATCH_REWRITES)
        expected = run(model, images())
        assert np.isfinite(expected).all(), f"seed {seed} makes no good test"
        for each in passes:
            try:
                changes += check(each, model, expected)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {each}\n" + "\n".join(graph.lines)) from error
    assert changes > AT_A_TIME  # most graphs have something for most passes


def test_a_batch_that_is_free_takes_each_image_by_itself() -> None:
    freed = 0
    for seed in range(0, GRAPHS, 2):
        graph = random_graph(seed)
        model = graph.model(batch=str(BATCH))
        tidy(model)
        try:
            free_batch(model)
        except GraphError:  # images are mixed, or an axis is no image's
            continue
        together = run(model, images(3))
        alone = np.concatenate([run(model, image).ravel() for image in np.split(images(3), 3)])
        freed += 1
        # Wherever the images lie: each number of the batch is one of some image's.
        close = 1e-5 * max(1.0, float(np.abs(together).max()))
        np.testing.assert_allclose(
            np.sort(together.ravel()), np.sort(alone), rtol=0, atol=close, err_msg=str(seed)
        )
    assert freed > GRAPHS // 10
