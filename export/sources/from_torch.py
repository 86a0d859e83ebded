"""Sources in torch: a checkpoint or weights of another project to the canonical float32 graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from calibration.graph.edit import Array
from export.graph.canonicalize import canonicalize
from export.graph.float_model import INPUT, OPSET, OUTPUT, FloatModel, rename_to_embedding
from export.sources.source import Reference, Source
from export.write_artifact import hash_file
from vit.checkpoint import load_checkpoint
from vit.data.public import public_name
from vit.document import CheckpointError
from vit.pretrained.description import UnstatedError
from vit.pretrained.hub import describe_download, name_snapshot
from vit.run_folder import FLOAT_MODEL

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint
    from vit.model import ViT
    from vit.pretrained.load import ImportedModel


def export_checkpoint(checkpoint: Checkpoint) -> Source:
    """Export a checkpoint's model, one without a head as an embedding; torch is its reference.

    The description names the origin of the weights without private folders. Of a model that was trained with
    a plan, the source is its teacher, the float model: what INT8 must equal.

    Raises:
        CheckpointError: when the teacher is not beside the checkpoint.
    """
    source = _export_one(checkpoint)
    if "plan" not in checkpoint.recipe:
        return source
    teacher = _load_teacher(checkpoint)
    name = checkpoint.recipe.get("from_name", teacher.name)
    facts = {"trained_with_plan": checkpoint.recipe["plan"], "float32": name}
    float32 = _export_one(teacher)
    note = f"{source.description['name']} was trained with a plan: float32 is its teacher, {name}; INT8 is"
    return replace(
        float32,
        trained=source,
        trained_on=source.trained_on | float32.trained_on,
        description={**source.description, **facts, "float32_sha256": teacher.digest},
        notes=(f"{note} compared with it",),
    )


def _load_teacher(checkpoint: Checkpoint) -> Checkpoint:
    """Load the float model that a model was trained from, which lies beside it."""
    file, digest = checkpoint.path.with_name(FLOAT_MODEL), checkpoint.recipe.get("from")
    expected = f"{file}: expected the float model that the run was trained from, SHA-256 {digest}"
    if not file.is_file():
        raise CheckpointError(f"{expected}, found none; copy it there")
    if (teacher := load_checkpoint(file)).digest != digest:
        raise CheckpointError(f"{expected}, found {teacher.digest}; copy the one of this run there")
    return teacher


def _export_one(checkpoint: Checkpoint) -> Source:
    recipe = checkpoint.recipe
    origin = {"imported": "imported", "data": "trained_on", "from_name": "trained_from"}
    return _export(
        checkpoint,
        trained_on=frozenset(recipe.get("trained_on", ())) - {""},
        description={
            "name": name_snapshot(checkpoint.path) or checkpoint.name,
            "checkpoint": checkpoint.path.name,
            "sha256": checkpoint.digest,
            **describe_download(checkpoint.path, recipe.get("source")),
            **{name: public_name(str(recipe[key])) for key, name in origin.items() if recipe.get(key)},
            "config": checkpoint.model.config.to_dict(),
        },
    )


def export_weights(path: Path) -> Source:
    """Import a file of weights of another project, or a folder with one; torch is the reference.

    A model without a head becomes an embedding. The description names what was assumed.

    Raises:
        SourceError: for weights that cannot be read or do not fit.
    """
    from vit.pretrained.load import import_model
    from vit.pretrained.weight_files import find_weights, name_weights

    try:
        found = import_model(path)
    except UnstatedError as error:
        how = f"python -m vit import {path} … --out RUN, and export RUN"
        raise UnstatedError(f"{error} (an option of {how})") from error
    file = find_weights(path)
    return _export(
        found,
        notes=found.notes,
        description={
            "name": name_weights(path),
            "weights": file.name,
            "format": found.format,
            "sha256": hash_file(file),
            **describe_download(path),
            "config": found.model.config.to_dict(),
            **({"assumed": list(found.assumed)} if found.assumed else {}),
        },
    )


def _export(found: Checkpoint | ImportedModel, *, description: Mapping[str, Any], **more: Any) -> Source:
    exported = export_float_graph(found.model)

    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            return found.model(torch.from_numpy(pixels)).numpy()  # type: ignore[no-any-return]

    return Source(
        exported=exported,
        embedding=None if found.labels else rename_to_embedding(exported.model),
        reference=Reference(run),
        reference_name="torch",
        preprocess=found.preprocess,
        labels=found.labels,
        thresholds=found.thresholds,
        description=description,
        **more,
    )


def export_float_graph(model: ViT) -> FloatModel:
    """Export with a dynamic batch through torch.onnx (dynamo), then run every rewrite.

    The graph takes `pixels`, uint8 [N, H, W, 3], and gives `logits`, float32 [N, classes].
    """
    exported = export_raw_graph(model)
    return FloatModel(exported, canonicalize(exported))


def export_raw_graph(model: ViT) -> ir.Model:
    """Return the model that torch.onnx.export writes, before any rewrite."""
    pixels = torch.zeros(2, *model.config.image_size, 3, dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            model.eval(),
            (pixels,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no model")
    return program.model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence torch.onnx, which warns of its own deprecations and of a torchvision that is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
