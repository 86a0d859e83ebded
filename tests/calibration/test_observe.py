"""Statistics of the calibration images: extremes, whatever the batches, and never the tensors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError, add_constant, by_type
from calibration.graph.layers import find_layers
from calibration.observe import (
    Observation,
    RowStatistics,
    find_class_token,
    observe_activations,
    open_observing_session,
)
from tests.support.small_graphs import block


@pytest.fixture
def graph(canonical) -> ir.Model:
    return canonical["plain"].clone()


@pytest.fixture
def images(models, pixels_for) -> np.ndarray:
    return pixels_for(models["plain"].config, count=11)


def test_extremes_are_those_of_all_images(graph: ir.Model, images: np.ndarray) -> None:
    names = find_layers(graph).activations
    found = observe_activations(graph, names, np.split(images, [4, 8]))
    session = open_observing_session(graph, names)
    tensors = [session.run(names, {"pixels": image[None]}) for image in images]
    for index, name in enumerate(names):
        rows = np.concatenate([each[index].reshape(-1, each[index].shape[-1]) for each in tensors])
        np.testing.assert_allclose(found[name].all.low, rows.min(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name].all.high, rows.max(axis=0), rtol=1e-5, atol=1e-6)


def test_batches_do_not_matter(graph: ir.Model, images: np.ndarray) -> None:
    names = find_layers(graph).activations
    one, many = (
        observe_activations(graph, names, [images]),
        observe_activations(graph, names, np.split(images, 11)),
    )
    for name in names:
        np.testing.assert_array_equal(one[name].all.high, many[name].all.high)
        np.testing.assert_array_equal(one[name].fit.rows, many[name].fit.rows)


def test_held_images_are_not_fitted(graph: ir.Model, images: np.ndarray) -> None:
    names = find_layers(graph).activations
    every = observe_activations(graph, names, [images])
    without = observe_activations(graph, names, [images[np.arange(11) % 4 != 3]])
    for name in names:
        assert len(every[name].held.rows)
        low = np.minimum(every[name].fit.extremes.low, every[name].held.extremes.low)
        np.testing.assert_array_equal(every[name].all.low, low)
    changed = [not np.array_equal(every[name].all.high, without[name].all.high) for name in names]
    assert any(changed)


def test_images_are_streamed(graph: ir.Model, images: np.ndarray) -> None:
    """Batches that were observed are not kept alive."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def feed() -> Iterator[np.ndarray]:
        nonlocal most
        for image in images:
            batch = image[None].copy()
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            gc.collect()
            most = max(most, sum(each() is not None for each in alive))

    observe_activations(graph, find_layers(graph).activations, feed())
    assert len(alive) == 11
    assert most <= 2  # the one just observed, and what the loop variable still names


def test_rows_kept_are_bounded(graph: ir.Model, models, pixels_for) -> None:
    names = find_layers(graph).activations
    images = pixels_for(models["plain"].config, count=80)
    few, many = observe_activations(graph, names, [images[:60]]), observe_activations(graph, names, [images])
    kept = set()
    for name in names:
        for found, fitted, held in ((few, 45, 15), (many, 60, 20)):  # each fourth image is held
            rows = found[name].rows_per_image
            assert len(found[name].fit.rows) == min(768, rows * fitted)
            assert len(found[name].held.rows) == min(256, rows * held)
            kept.add(len(found[name].fit.rows))
    assert 768 in kept > {45, 60}  # some tensors have one row per image, most have more than is kept


def test_no_image(graph: ir.Model) -> None:
    with pytest.raises(GraphError, match="expected at least one calibration image, found none"):
        observe_activations(graph, find_layers(graph).activations, [])


def test_a_tensor_that_is_not_there(graph: ir.Model, images: np.ndarray) -> None:
    with pytest.raises(GraphError, match="expected a tensor 'nowhere' in the graph"):
        observe_activations(graph, ["nowhere"], [images])


def test_what_is_not_finite(graph: ir.Model, images: np.ndarray) -> None:
    gemm = next(node for node in by_type(graph, "Gemm") if node.name == "blocks.0.mlp.fc1")
    bias = np.full(64, np.inf, np.float32)
    gemm.replace_input_with(2, add_constant(graph.graph, "broken", bias))
    with pytest.raises(GraphError, match=r"is not finite on the calibration images"):
        observe_activations(graph, find_layers(graph).activations, [images])


def test_rows_of_the_class_token_are_kept_apart(graph: ir.Model, images: np.ndarray) -> None:
    """Those of the images that judge, and those of the others."""
    assert find_class_token(graph) == (0, 17)
    names = find_layers(graph).activations
    found = observe_activations(graph, names, [images])
    session = open_observing_session(graph, names)
    tensors = [session.run(names, {"pixels": image[None]}) for image in images]
    several = 0
    for index, name in enumerate(names):
        fit, held = found[name].fit_class, found[name].held_class
        if found[name].rows_per_image != 17:
            assert fit is held is None
            continue
        first = np.stack([each[index].reshape(-1, each[index].shape[-1])[0] for each in tensors])
        judges = np.arange(len(images)) % 4 == 3
        for kept, expected in ((fit, first[~judges]), (held, first[judges])):
            assert kept is not None
            np.testing.assert_allclose(
                np.sort(kept.rows, axis=0), np.sort(expected, axis=0), rtol=1e-5, atol=1e-6
            )
        several += 1
    assert several > 3


def test_where_all_tokens_go_on_none_is_the_class_token() -> None:
    assert find_class_token(block()) is None


def test_a_row_of_the_class_token_counts_as_much_as_its_share_of_the_others() -> None:
    """Two rows beside six: three each. A single image judges itself."""
    made = Observation.empty(2, 4)
    made.fit_class, made.held_class = RowStatistics(2, 8), RowStatistics(2, 8)
    made.fit.update(np.zeros((6, 2), np.float32))
    made.fit_class.update(np.ones((2, 2), np.float32))
    rows, weights = made.weigh_fit()
    assert rows[:, 0].tolist() == [0] * 6 + [1] * 2
    assert weights.tolist() == [1] * 6 + [3] * 2
    for alone, again in zip(made.weigh_judged(), (rows, weights), strict=True):
        np.testing.assert_array_equal(alone, again)
    made.held.update(np.full((2, 2), 5, np.float32))
    made.held_class.update(np.full((1, 2), 7, np.float32))
    rows, weights = made.weigh_judged()
    assert (rows[:, 0].tolist(), weights.tolist()) == ([5, 5, 7], [1, 1, 2])
    made.held_class = None
    assert made.weigh_judged()[1].tolist() == [1, 1]
