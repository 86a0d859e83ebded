"""Input of an export: a checkpoint or an ONNX model, in one form."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.graph.edit import Array
from export.graph.model import FloatModel
from export.sources.from_torch import add_embedding, only_embedding
from export.write_artifact import digest_of
from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from vit.data.public import public_name
from vit.pretrained.documents import ONE_CLASS

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint


class Reference:
    """The model that an export must equal, running: logits for `uint8 [N, H, W, 3]`."""

    def __init__(self, run: Callable[[Array], Array]) -> None:
        self._run: Callable[[Array], Array] | None = run

    def __call__(self, pixels: Array) -> Array:
        if self._run is None:
            raise RuntimeError("the reference of this source was let go, since it takes much memory")
        return self._run(pixels)

    def let_go(self) -> None:
        """Free the memory of the model; it cannot be asked any more."""
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
    embedding: int | None = None  # features of the output `embedding`; None without it
    notes: tuple[str, ...] = ()  # what was chosen among several things in the source, a sentence each
    float_layers: tuple[str, ...] = ()  # layers with weights that no rewrite made quantizable

    def __post_init__(self) -> None:
        if len(self.labels) == 1:
            raise InputError(f"{self.description.get('name')}: {ONE_CLASS}")


def with_embedding(source: Source) -> Source:
    """Add the output `embedding` to the graph of a source, in place; one without classes has it already.

    Raises:
        GraphError: when the logits are not made by one linear layer of one vector per image.
    """
    if source.embedding is not None:
        return source
    return replace(source, embedding=add_embedding(source.exported.model))


def from_checkpoint(checkpoint: Checkpoint) -> Source:
    """Export a checkpoint's model, one without a head as an embedding; torch is its reference."""
    import torch

    from export.sources.from_torch import export_float

    def reference(pixels: Array) -> Array:
        with torch.inference_mode():
            return checkpoint.model(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    exported = export_float(checkpoint.model)
    return Source(
        exported=exported,
        embedding=None if checkpoint.labels else only_embedding(exported.model),
        reference=Reference(reference),
        reference_name="torch",
        preprocess=checkpoint.preprocess,
        labels=checkpoint.labels,
        trained_on=frozenset(checkpoint.recipe.get("trained_on", ())) - {""},
        description={
            "name": checkpoint.name,
            "checkpoint": checkpoint.path.name,
            "sha256": checkpoint.digest,
            **_training(checkpoint.recipe),
            "config": checkpoint.model.config.to_dict(),
        },
    )


def _training(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return what a checkpoint tells of the origin of its weights, without private folders."""
    names = {"imported": "imported", "data": "trained_on", "from_name": "trained_from"}
    return {name: public_name(str(recipe[key])) for key, name in names.items() if recipe.get(key)}


def from_weights(path: Path) -> Source:
    """Import weights of another project, a model without a head as an embedding; torch is the reference.

    Raises:
        SourceError: for weights that cannot be read or do not fit.
    """
    import torch

    from export.sources.from_torch import export_float
    from vit.pretrained.documents import SourceError
    from vit.pretrained.load import read_source
    from vit.pretrained.weight_files import find_weights

    try:
        found = read_source(path)
    except SourceError as error:
        if "--heads" not in str(error) and "--activation" not in str(error):
            raise
        how = f"python -m vit import {path} … --out RUN, and export RUN"
        raise SourceError(f"{error} (an option of {how})") from error
    exported = export_float(found.model)

    def reference(pixels: Array) -> Array:
        with torch.inference_mode():
            return found.model(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    file = find_weights(path)
    return Source(
        exported=exported,
        embedding=None if found.labels else only_embedding(exported.model),
        reference=Reference(reference),
        reference_name="torch",
        preprocess=found.preprocess,
        labels=found.labels,
        notes=found.notes,
        description={
            "name": path.resolve().name if path.is_dir() else path.stem,
            "weights": file.name,
            "format": found.format,
            "sha256": digest_of(file),
            "config": found.model.config.to_dict(),
            **({"assumed": list(found.assumed)} if found.assumed else {}),
        },
    )


def is_of_others(path: Path) -> bool:
    """Return whether a file or folder holds weights of another project, not a checkpoint of this one."""
    from safetensors import SafetensorError, safe_open

    from vit.document import FILE_NAME, KEY
    from vit.pretrained.weight_files import WEIGHTS, of_another

    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        return path.is_dir() and any(each.name.endswith(WEIGHTS) for each in path.iterdir())
    if file.suffix != ".safetensors":
        return file.name.endswith(WEIGHTS) or (bool(of_another(file.name)) and file.suffix != ".onnx")
    try:
        with safe_open(file, framework="numpy") as opened:
            return KEY not in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False  # reading it as a checkpoint says what is wrong


def from_onnx(model: Path, preprocess: Path | None = None) -> Source:
    """Read a foreign model and its description; the original file in ONNX Runtime is its reference.

    Args:
        model: an .onnx file, or the folder of optimum or transformers.js.
        preprocess: the description, or a preprocessor_config.json; None to look beside the model.

    Raises:
        ForeignError: for files that cannot be used.
    """
    from export.sources.onnx_file import load
    from export.sources.onnx_folder import describe

    described = describe(model, preprocess)
    found = load(described.model, described.spec)
    return Source(
        exported=found.exported,
        reference=Reference(found.reference),
        reference_name="the original ONNX",
        preprocess=found.preprocess,
        labels=found.labels,
        embedding=None if found.labels else only_embedding(found.exported.model),
        description={
            "name": described.name,
            "onnx": found.path.name,
            "sha256": found.digest,
            **({"assumed": list(described.assumed)} if described.assumed else {}),
        },
        float_layers=found.float_layers,
    )
