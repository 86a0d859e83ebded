"""The source of an export in one form: its canonical float graph, and the model that the graph must equal."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from calibration.graph.edit import Array
from export.graph.float_model import FloatModel, add_embedding
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from vit.pretrained.description import ONE_CLASS


class Reference:
    """The model that an export must equal, running: logits for `uint8 [N, H, W, 3]`."""

    def __init__(self, run: Callable[[Array], Array]) -> None:
        self._run: Callable[[Array], Array] | None = run

    def __call__(self, pixels: Array) -> Array:
        """Return the logits, or the embeddings of a model without classes, `float32 [N, classes]`."""
        if self._run is None:
            raise RuntimeError("the reference of this source was released, since it takes much memory")
        return self._run(pixels)

    def release_memory(self) -> None:
        """Free the memory of the model; it cannot run again."""
        self._run = None
        gc.collect()  # what torch.export leaves refers to itself in circles, and to the weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """The canonical float graph, and the model it was made from, which it must equal."""

    exported: FloatModel
    reference: Reference = field(repr=False)
    reference_name: str  # for messages: "torch"
    preprocess: Preprocess
    labels: tuple[str, ...]  # empty for a model without classes, whose output is an embedding
    description: Mapping[str, Any]  # where it came from, for metadata and reports (JSON values)
    trained_on: frozenset[str] = frozenset()  # digests of the images that the model was trained on, if known
    thresholds: tuple[float, ...] | None = None  # one per label, of a model with several labels per image
    embedding: int | None = None  # features of the output `embedding`; None without it
    notes: tuple[str, ...] = ()  # what was chosen among several things in the source, one sentence each
    # The same model with weights that were trained with a plan: INT8 is written from them, and compared with
    # the float model above, their teacher.
    trained: Source | None = None
    float_layers: tuple[str, ...] = ()  # layers with weights that no rewrite made quantizable

    @property
    def int8_graph(self) -> ir.Model:
        """The canonical float graph that INT8 is written from."""
        return (self.trained or self).exported.model

    def __post_init__(self) -> None:
        if len(self.labels) == 1:
            raise InputError(f"{self.description.get('name')}: {ONE_CLASS}")


def ensure_source_embedding(source: Source) -> Source:
    """Add the output `embedding` to the graph of a source, in place; one without classes has it already.

    Raises:
        GraphError: when the logits are not made by one linear layer of one vector per image.
    """
    if source.embedding is not None:
        return source
    if source.trained is not None:
        add_embedding(source.trained.exported.model)
    return replace(source, embedding=add_embedding(source.exported.model))
