"""Model files with their metadata, written aside and renamed together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from calibration.serialize import SMALL, let_go, weight_bytes
from runtime.interrupts import careful
from runtime.model_file.artifact import FILE_NAMES, METADATA_KEY, Metadata
from runtime.model_file.data_file import DATA_KEY, DATA_SUFFIX
from runtime.writing import OutputError, explained_output, temporary_folder

PRODUCER = "vit-edge"
IR_VERSION = 10
ONE_FILE = 2**31 - 2**24  # bytes of weights; a message has less than 2 GB, and the graph takes some


def write_model(path: Path, model: ir.Model, metadata: Metadata) -> tuple[int, str]:
    """Write an .onnx file; of 2 GB or more, which no .onnx file can have, the weights go beside it.

    Returns:
        The size of what was written, in bytes, and the SHA-256 of the .onnx file. Where there is a second
        file, the first one holds its size and its SHA-256.
    """
    model = cleaned(model, metadata)
    if weight_bytes(model) > ONE_FILE:
        beside = path.with_name(f"{path.name}{DATA_SUFFIX}")
        ir.external_data.unload_from_model(model, path.parent, beside.name, size_threshold_bytes=SMALL)
        size = beside.stat().st_size
        entry = {"file": beside.name, "bytes": size, "sha256": digest_of(beside)}
        model.metadata_props[DATA_KEY] = json.dumps(entry)
        written = _write(path, [ir.to_proto(model).SerializeToString()])
        return written[0] + size, written[1]
    written = _write(path, serialized_parts(model))
    let_go(model)
    return written


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            size += file.write(part)
            digest.update(part)
    return size, digest.hexdigest()


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, without reading it at once."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def model_bytes(model: ir.Model, metadata: Metadata | None = None) -> bytes:
    """Return the bytes of an .onnx file."""
    return b"".join(serialized_parts(cleaned(model, metadata)))


def serialized_parts(model: ir.Model) -> Iterator[bytes | memoryview]:
    """Yield the bytes of an .onnx file in order, its large weights one by one: the whole is never in memory.

    A message within a message stands behind its number and its length, so all lengths are summed up first.
    """
    proto = ir.to_proto(model)
    weights = []
    for tensor in proto.graph.initializer:
        content: bytes | memoryview = b""
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            content = _content(model.graph.initializers[tensor.name])
        weights.append((tensor.SerializeToString(), content))
    del proto.graph.initializer[:]
    before, after = _halves(proto.graph, last=5)  # initializers are field 5 of a graph
    heads = [_head(9, len(content)) if content else b"" for _, content in weights]
    sizes = [len(a) + len(b) + len(c) for (a, c), b in zip(weights, heads, strict=True)]
    inside = [_head(5, size) for size in sizes]
    total = len(before) + len(after) + sum(sizes) + sum(map(len, inside))
    proto.graph.Clear()
    first, last = _halves(proto, last=7)  # the graph is field 7 of a model
    yield first + _head(7, total) + before
    for opening, (tensor_start, content), head in zip(inside, weights, heads, strict=True):
        yield opening + tensor_start + head
        yield content
    yield after + last


def _halves(message: Any, *, last: int) -> tuple[bytes, bytes]:
    """Return the serialized fields of a message up to one number, and those after it."""
    before, after = type(message)(), type(message)()
    for half, wanted in ((before, True), (after, False)):
        half.CopyFrom(message)
        for field, _ in message.ListFields():
            if (field.number <= last) != wanted or field.number == last:
                half.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _content(value: ir.Value) -> memoryview:
    assert value.const_value is not None  # it is among the initializers of the file
    content: memoryview = value.const_value.numpy().reshape(-1).view(np.uint8).data
    return content


def _head(number: int, length: int) -> bytes:
    """Return what stands before the bytes of a field of a protobuf message: its number and its length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits per byte, the lowest first; the eighth bit says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


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
    with careful(), explained_output(folder):
        yield from _staged(folder)


def left_over(folder: Path, written: Collection[str]) -> list[Path]:
    """Return the model files in a folder that an export did not write: they are of another one."""
    names = [name for name in FILE_NAMES.values() if name not in written]
    beside = [f"{name}{DATA_SUFFIX}" for name in names]
    plan = [] if FILE_NAMES["int8"] in written else ["plan.json"]
    return [folder / name for name in (*names, *beside, *plan) if (folder / name).exists()]


def _staged(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as aside:
        yield aside
        folder.mkdir(exist_ok=True)
        for path in sorted(aside.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.replace(folder / path.name)
