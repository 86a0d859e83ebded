"""Stream pictures through the float model and keep what a plan needs to know of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from calibration.graph import Array, GraphError
from calibration.plan import Target
from runtime.session import open_session


@dataclass
class Extremes:
    """The smallest and largest value each feature of a tensor took, `[features]`; memory does not grow."""

    low: Array
    high: Array

    @classmethod
    def none_yet(cls) -> Extremes:
        return cls(np.array(np.inf, np.float32), np.array(-np.inf, np.float32))

    def update(self, tensor: Array) -> None:
        rows = tensor.reshape(-1, tensor.shape[-1])
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))


def observing_session(
    model: ir.Model,
    names: Sequence[str],
    *,
    threads: int | None = None,
    target: Target | Literal["any"] = "any",
) -> ort.InferenceSession:
    """A CPU session of a model that gives the named tensors as well as the logits."""
    observed = model.clone()
    values = ir.convenience.create_value_mapping(observed.graph)
    for name in names:
        if name not in values:
            raise GraphError(f"expected a tensor {name!r} in the graph, found none of that name")
        if not values[name].is_graph_output():
            observed.graph.outputs.append(values[name])
    return open_session(
        ir.to_proto(observed).SerializeToString(), device="cpu", threads=threads, target=target
    )


def observe_extremes(
    model: ir.Model, names: Sequence[str], pictures: Iterable[Array], *, threads: int | None = None
) -> Mapping[str, Extremes]:
    """Run each batch `uint8 [N, H, W, 3]` through the float model and keep the extremes of the named tensors.

    Raises:
        GraphError: when there is no picture, or a tensor is not finite.
    """
    session = observing_session(model, names, threads=threads)
    found = {name: Extremes.none_yet() for name in names}
    count = 0
    for batch in pictures:
        count += len(batch)
        for name, tensor in zip(
            names, session.run(list(names), {session.get_inputs()[0].name: batch}), strict=True
        ):
            found[name].update(tensor)
    if not count:
        raise GraphError("expected at least one calibration picture, found none")
    for name, extremes in found.items():
        if not (np.isfinite(extremes.low).all() and np.isfinite(extremes.high).all()):
            raise GraphError(f"the float model's tensor {name!r} is not finite on the calibration pictures")
    return found
