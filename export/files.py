"""Model files with their metadata, written aside and renamed together."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from calibration.serialize import weight_bytes
from runtime.model_file.artifact import METADATA_KEY, Metadata
from runtime.writing import OutputError, explained_output

PRODUCER = "vit-edge"
IR_VERSION = 10
ONE_FILE = 2**31 - 2**24  # bytes of weights; a message has less than 2 GB, and the graph takes some


def write_model(path: Path, model: ir.Model, metadata: Metadata) -> tuple[int, str]:
    """Write an .onnx file; of 2 GB or more, which no .onnx file can have, the weights go beside it.

    Returns:
        The size of what was written, in bytes, and the SHA-256 of the .onnx file.
    """
    if weight_bytes(model) <= ONE_FILE:
        data = model_bytes(model, metadata)
        path.write_bytes(data)
        return len(data), hashlib.sha256(data).hexdigest()
    beside = path.with_name(f"{path.name}.data")
    ir.save(cleaned(model, metadata), path, external_data=beside.name)
    return path.stat().st_size + beside.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def model_bytes(model: ir.Model, metadata: Metadata | None = None) -> bytes:
    """Return the bytes of an .onnx file."""
    data: bytes = ir.to_proto(cleaned(model, metadata)).SerializeToString()
    return data


def cleaned(model: ir.Model, metadata: Metadata | None = None) -> ir.Model:
    """Return a copy without what exporters leave in nodes: source lines, local paths. Weights are shared."""
    model = model.clone()
    ClearMetadataAndDocStringPass()(model)
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, PRODUCER, None
    model.metadata_props.clear()
    if metadata is not None:
        model.metadata_props[METADATA_KEY] = metadata.to_json()
    return model


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files move into `folder` when all went well, and vanish otherwise.

    Each file replaces its older one in one step, so an interruption leaves whole files, the last good ones.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder to write to, found a file; choose another --out")
    with explained_output(folder):
        yield from _staged(folder)


def _staged(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        folder.mkdir(exist_ok=True)
        for path in sorted(aside.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
