"""Input of an export: a checkpoint or an ONNX model, in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.graph import Array
from export.canonical import FloatModel
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Source:
    """The canonical float graph, and the model it was made from, which it must equal."""

    exported: FloatModel
    reference: Callable[[Array], Array] = field(repr=False)  # logits for uint8 [N, H, W, 3]
    reference_name: str  # for messages: "torch"
    preprocess: Preprocess
    labels: tuple[str, ...]
    description: Mapping[str, Any]  # where it came from, for metadata and reports (JSON values)
    trained_on: frozenset[str] = frozenset()  # digests of the images that the model was trained on, if known
    float_layers: tuple[str, ...] = ()  # layers with weights that no rewrite made quantizable


def from_checkpoint(checkpoint: Checkpoint) -> Source:
    """Export a checkpoint's model; torch is its reference."""
    import torch

    from export.from_torch import export_float
    from vit.checkpoint import FILE_NAME

    def reference(pixels: Array) -> Array:
        with torch.inference_mode():
            return checkpoint.model(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    return Source(
        exported=export_float(checkpoint.model),
        reference=reference,
        reference_name="torch",
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        trained_on=frozenset(checkpoint.recipe.get("trained_on", ())) - {""},
        description={
            "name": checkpoint.path.parent.name
            if checkpoint.path.name == FILE_NAME
            else checkpoint.path.stem,
            "checkpoint": checkpoint.path.name,
            "sha256": checkpoint.digest,
            "config": checkpoint.model.config.to_dict(),
        },
    )


def from_onnx(model: Path, spec: Path) -> Source:
    """Read a foreign model and its description; the original file in ONNX Runtime is its reference.

    Raises:
        ForeignError: for files that cannot be used.
    """
    from export.from_onnx.load import load
    from export.from_onnx.spec import read_spec

    found = load(model, read_spec(spec))
    return Source(
        exported=found.exported,
        reference=found.reference,
        reference_name="the original ONNX",
        preprocess=found.preprocess,
        labels=found.labels,
        description={"name": found.path.stem, "onnx": found.path.name, "sha256": found.digest},
        float_layers=found.float_layers,
    )
