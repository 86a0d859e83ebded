"""Statistics of activations, streamed over the calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, GraphError, attribute, by_type, input_constant, sizes
from calibration.graph.layers import expect_input
from calibration.graph.memory import open_graph_session
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort

FIT_ROWS, HELD_ROWS = 768, 256  # rows kept of each tensor, whatever the number of images
NO_IMAGE = "expected at least one calibration image, found none"
CLASS_ROWS = 64  # of the class token, one per image, fitted and held-out ones apart
HOLD_EVERY = 4  # each fourth image judges the ranges that are fitted to the others


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest value of each feature of a tensor, `float32 [features]`."""

    low: Array
    high: Array

    def merge(self, other: Extremes) -> Extremes:
        """Return the extremes over both."""
        return Extremes(np.minimum(self.low, other.low), np.maximum(self.high, other.high))


class RowStatistics:
    """Extremes of a stream of rows, and a uniform random sample of them, the same in every run.

    Memory does not grow with the number of images: every row draws a key, and the `capacity` rows with the
    smallest keys stay (Efraimidis and Spirakis, Information Processing Letters 97, 2006, with equal weights).
    """

    def __init__(self, features: int, capacity: int) -> None:
        nothing = np.full(features, np.inf, np.float32)
        self.extremes = Extremes(nothing, -nothing)
        self._rows = np.empty((capacity, features), np.float32)
        self._keys = np.full(capacity, np.inf)
        self._random = np.random.default_rng(0)

    @property
    def rows(self) -> Array:
        """The sample, `float32 [rows, features]`."""
        return np.asarray(self._rows[np.isfinite(self._keys)])

    def update(self, rows: Array) -> None:
        """Take in `float32 [rows, features]`."""
        self.extremes = self.extremes.merge(Extremes(rows.min(axis=0), rows.max(axis=0)))
        capacity = len(self._keys)
        keys = np.concatenate([self._keys, self._random.random(len(rows))])
        kept = np.argsort(keys, kind="stable")[:capacity]
        entering = np.sort(kept[kept >= capacity]) - capacity
        leaving = np.setdiff1d(np.arange(capacity), kept)
        self._rows[leaving] = rows[entering]
        self._keys[leaving] = keys[capacity + entering]


@dataclass
class Observation:
    """Statistics of a tensor over the images that ranges are fitted to, and over those that judge them."""

    fit: RowStatistics
    held: RowStatistics
    rows_per_image: int
    # The rows of the class token of the same images, where an image has others too.
    fit_class: RowStatistics | None = None
    held_class: RowStatistics | None = None

    @classmethod
    def empty(cls, features: int, rows_per_image: int) -> Observation:
        """Return statistics of no image."""
        return cls(RowStatistics(features, FIT_ROWS), RowStatistics(features, HELD_ROWS), rows_per_image)

    def weigh_fit(self) -> tuple[Array, Array]:
        """Return rows of the fitted images, and how much the error of each counts, as `weigh_judged` does."""
        return _weigh(self.fit.rows, self.fit_class)

    def weigh_judged(self) -> tuple[Array, Array]:
        """Return rows of the held-out images, or, when there is just one image, of that, with their weights.

        The rows of the class token count as much as all others together. In a ViT-B/16 one of them moves the
        logits 70 (first block) to 1,200 times (block 8) as much as one of the 196 patches, by the same error.

        Returns:
            `float32 [rows, features]` and `float64 [rows]`.
        """
        return _weigh(self.held.rows, self.held_class) if len(self.held.rows) else self.weigh_fit()

    @property
    def all(self) -> Extremes:
        """Extremes over all images, fitted and held out."""
        return self.fit.extremes.merge(self.held.extremes)


def _weigh(rows: Array, class_token: RowStatistics | None) -> tuple[Array, Array]:
    first = class_token.rows if class_token is not None else rows[:0]
    weights = np.ones(len(rows) + len(first))
    weights[len(rows) :] = len(rows) / max(len(first), 1)
    return np.concatenate([rows, first]), weights


def find_class_token(model: ir.Model) -> tuple[int, int] | None:
    """Return which of an image's tokens goes into the head alone, and their number; None where all do.

    Args:
        model: a canonical graph, whose tokens are `[tokens, images, features]` where one of them is selected.
    """
    for node in by_type(model, "Gather"):
        index, shape = input_constant(node, 1), sizes(expect_input(node, 0)) or []
        if attribute(node, "axis", 0) or index is None or index.size != 1 or len(shape) != 3:
            continue
        if (tokens := shape[0]) is not None and 0 <= int(index.reshape(())) < tokens:
            return int(index.reshape(())), tokens
    return None


def open_observing_session(
    model: ir.Model, names: Sequence[str], *, threads: int | None = None, target: Target = "any-cpu"
) -> ort.InferenceSession:
    """Open a CPU session of a model that gives the named tensors, anywhere in the graph, and the logits.

    Raises:
        GraphError: for a name that no tensor has.
    """
    observed = model.clone()
    values = ir.convenience.create_value_mapping(observed.graph)
    for name in names:
        if name not in values:
            raise GraphError(f"expected a tensor {name!r} in the graph, found none of that name")
        if not values[name].is_graph_output():
            observed.graph.outputs.append(values[name])
    return open_graph_session(observed, threads=threads, target=target)


def run_each(
    model: ir.Model,
    names: Sequence[str],
    images: Iterable[Array],
    *,
    threads: int | None = None,
    target: Target = "any-cpu",
) -> Iterator[list[Array]]:
    """Yield the named tensors of one image after the other: those of a batch would be large."""
    session = open_observing_session(model, names, threads=threads, target=target)
    feed = session.get_inputs()[0].name
    for batch in images:
        for image in np.split(batch, len(batch)):
            yield session.run(list(names), {feed: image})


def observe_extremes(
    model: ir.Model, names: Sequence[str], images: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, Extremes]:
    """Return the extremes of each named tensor along its last axis, by name, over streamed images.

    Raises:
        GraphError: when there is no image, or a tensor is not finite.
    """
    found: dict[str, Extremes] = {}
    for tensors in run_each(model, names, images, threads=threads):
        for name, tensor in zip(names, tensors, strict=True):
            rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
            bounds = Extremes(rows.min(axis=0), rows.max(axis=0))
            found[name] = found[name].merge(bounds) if name in found else bounds
    if not found:
        raise GraphError(NO_IMAGE)
    for name, bounds in found.items():
        _check_finite(name, bounds)
    return found


def observe_activations(
    model: ir.Model, names: Sequence[str], images: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, Observation]:
    """Return statistics of the named tensors, by name, over images that run through the float model.

    The images are batches of `uint8 [N, H, W, 3]`; they are streamed.

    Raises:
        GraphError: when there is no image, or a tensor is not finite.
    """
    found: dict[str, Observation] = {}
    index, tokens = find_class_token(model) or (0, None)
    count = 0
    for count, tensors in enumerate(run_each(model, names, images, threads=threads), start=1):
        for name, tensor in zip(names, tensors, strict=True):
            rows = tensor.reshape(-1, tensor.shape[-1])
            if name not in found:
                found[name] = Observation.empty(rows.shape[1], len(rows))
                if len(rows) == tokens:
                    found[name].fit_class = RowStatistics(rows.shape[1], CLASS_ROWS)
                    found[name].held_class = RowStatistics(rows.shape[1], CLASS_ROWS)
            observation, judges = found[name], count % HOLD_EVERY == 0
            (observation.held if judges else observation.fit).update(rows)
            class_rows = observation.held_class if judges else observation.fit_class
            if class_rows is not None:
                class_rows.update(rows[index : index + 1])
    if not count:
        raise GraphError(NO_IMAGE)
    for name, observation in found.items():
        _check_finite(name, observation.all)
    return found


def _check_finite(name: str, extremes: Extremes) -> None:
    if not np.isfinite([extremes.low, extremes.high]).all():
        raise GraphError(f"the float model's tensor {name!r} is not finite on the calibration images")
