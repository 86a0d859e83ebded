"""Stream images through the float model and keep what a plan needs to know of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, GraphError
from calibration.graph.memory import session_of
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort

FIT_ROWS, HELD_ROWS = 768, 256  # rows kept of each tensor, whatever the number of images
HOLD_EVERY = 4  # each fourth image judges the ranges that the others gave


class Extremes:
    """The smallest and largest value each feature of a tensor took, `float32 [features]`."""

    def __init__(self, features: int) -> None:
        self.low = np.full(features, np.inf, np.float32)
        self.high = np.full(features, -np.inf, np.float32)

    def update(self, rows: Array) -> None:
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))

    def merged(self, other: Extremes) -> Extremes:
        both = Extremes(len(self.low))
        both.low, both.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return both


class Reservoir:
    """A uniform random sample of the rows that went by, at most `capacity`; the seed decides which."""

    def __init__(self, features: int, capacity: int, seed: int = 0) -> None:
        self._rows = np.empty((capacity, features), np.float32)
        self._keys = np.full(capacity, np.inf)
        self._random = np.random.default_rng(seed)

    @property
    def rows(self) -> Array:
        """The sample, `float32 [rows, features]`."""
        return np.asarray(self._rows[np.isfinite(self._keys)])

    def update(self, rows: Array) -> None:
        """Every row draws a key; those with the smallest keys stay, the others make room."""
        capacity = len(self._keys)
        keys = np.concatenate([self._keys, self._random.random(len(rows))])
        kept = np.argsort(keys, kind="stable")[:capacity]
        entering = np.sort(kept[kept >= capacity]) - capacity
        leaving = np.setdiff1d(np.arange(capacity), kept)
        self._rows[leaving] = rows[entering]
        self._keys[leaving] = keys[capacity + entering]


@dataclass
class Part:
    """Statistics of a tensor over some of the images. Memory does not grow with their number."""

    extremes: Extremes
    sample: Reservoir

    @property
    def rows(self) -> Array:
        """Some rows, `float32 [rows, features]`."""
        return self.sample.rows


@dataclass
class Observation:
    """A tensor over all images: those that ranges are fitted to, and those that judge them."""

    fit: Part
    held: Part
    rows_per_image: int

    @classmethod
    def empty(cls, features: int, rows_per_image: int) -> Observation:
        return cls(
            Part(Extremes(features), Reservoir(features, FIT_ROWS)),
            Part(Extremes(features), Reservoir(features, HELD_ROWS)),
            rows_per_image,
        )

    @property
    def judged(self) -> Part:
        """The held images, or, when there is just one image, that one."""
        return self.held if len(self.held.rows) else self.fit

    @property
    def all(self) -> Extremes:
        return self.fit.extremes.merged(self.held.extremes)


@dataclass
class _Stream:
    names: Sequence[str]
    found: dict[str, Observation] = field(default_factory=dict)
    images: int = 0

    def update(self, tensors: Sequence[Array], count: int) -> None:
        for name, tensor in zip(self.names, tensors, strict=True):
            features = tensor.shape[-1]
            by_image = tensor.reshape(count, -1, features)
            if name not in self.found:
                self.found[name] = Observation.empty(features, by_image.shape[1])
            observation = self.found[name]
            held = (np.arange(count) + self.images) % HOLD_EVERY == HOLD_EVERY - 1
            for part, chosen in ((observation.fit, ~held), (observation.held, held)):
                if chosen.any():
                    rows = by_image[chosen].reshape(-1, features)
                    part.extremes.update(rows)
                    part.sample.update(rows)
        self.images += count


def observing_session(
    model: ir.Model,
    names: Sequence[str],
    *,
    threads: int | None = None,
    target: Target = "any-cpu",
) -> ort.InferenceSession:
    """A CPU session of a model that gives the named tensors as well as the logits."""
    observed = model.clone()
    values = ir.convenience.create_value_mapping(observed.graph)
    for name in names:
        if name not in values:
            raise GraphError(f"expected a tensor {name!r} in the graph, found none of that name")
        if not values[name].is_graph_output():
            observed.graph.outputs.append(values[name])
    return session_of(observed, threads=threads, target=target)


def observe(
    model: ir.Model, names: Sequence[str], images: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, Observation]:
    """Run batches `uint8 [N, H, W, 3]` through the float model, and keep what is needed of the tensors.

    Raises:
        GraphError: when there is no image, or a tensor is not finite.
    """
    session = observing_session(model, names, threads=threads)
    stream = _Stream(names)
    feed = session.get_inputs()[0].name
    for batch in images:
        for image in np.split(batch, len(batch)):  # one at a time: the tensors of a batch would be large
            stream.update(session.run(list(names), {feed: image}), 1)
    if not stream.images:
        raise GraphError("expected at least one calibration image, found none")
    for name, observation in stream.found.items():
        extremes = observation.all
        if not (np.isfinite(extremes.low).all() and np.isfinite(extremes.high).all()):
            raise GraphError(f"the float model's tensor {name!r} is not finite on the calibration images")
    return stream.found
