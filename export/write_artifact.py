"""Model files with their metadata, written aside and renamed together."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from calibration.graph.memory import SMALL, release_memory, weight_bytes
from runtime.interrupts import raise_on_signal
from runtime.model_file.artifact import FILE_NAMES, METADATA_KEY, Metadata
from runtime.model_file.integrity import DATA_KEY, DATA_SUFFIX, digest_entry
from runtime.self_test.document import SELF_TEST_KEY, SelfTest
from runtime.writing import OutputError, explain_output_errors, sync_folder, temporary_folder

PRODUCER = "vit-edge"
IR_VERSION = 10
_DIGITS = 16  # of the SHA-256 in the name of a file with weights
ONE_FILE = 2**31 - 2**24  # bytes of weights; a message has less than 2 GB, and the graph takes some


def write_model(
    path: Path, model: ir.Model, metadata: Metadata, self_test: SelfTest | None = None
) -> tuple[int, str]:
    """Write an .onnx file; of 2 GB or more, which no .onnx file can have, the weights go beside it.

    The file with the weights is named after its content, so that it never replaces that of another model.
    The given model stays as it is.

    Returns:
        The size of both files in bytes, and the SHA-256 of the .onnx file, which holds size and SHA-256 of
        the second file.
    """
    model = clear_metadata(model)
    model.metadata_props[METADATA_KEY] = metadata.to_json(digest="sha256")
    if self_test is not None:
        model.metadata_props[SELF_TEST_KEY] = self_test.to_json()
    if weight_bytes(model) <= ONE_FILE:
        written = _write(path, _serialize_in_parts(model))
        release_memory(model)
        return written
    unnamed = path.with_name(f"{path.name}{DATA_SUFFIX}")
    ir.external_data.unload_from_model(model, path.parent, unnamed.name, size_threshold_bytes=SMALL)
    size, sha256 = unnamed.stat().st_size, hash_file(unnamed)
    name = f"{path.name}.{sha256[:_DIGITS]}{DATA_SUFFIX}"
    model.metadata_props[DATA_KEY] = json.dumps({"file": name, "bytes": size, "sha256": sha256})
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        for place in tensor.external_data:
            place.value = name if place.key == "location" else place.value
    unnamed.rename(path.with_name(name))
    graph_size, digest = _write(path, [proto.SerializeToString()])
    return graph_size + size, digest


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write the parts of a file and, at its end, the entry with the SHA-256 of them."""
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            size += file.write(part)
            digest.update(part)
        entry = digest_entry(digest.hexdigest())
        size += file.write(entry)
        digest.update(entry)
    return size, digest.hexdigest()


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, without reading it at once."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def serialize_model(model: ir.Model) -> bytes:
    """Return the bytes of an .onnx file without metadata."""
    return b"".join(_serialize_in_parts(clear_metadata(model)))


def _serialize_in_parts(model: ir.Model) -> Iterator[bytes | memoryview]:
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
            value = model.graph.initializers[tensor.name].const_value
            assert value is not None  # it is among the initializers of the file
            content = value.numpy().reshape(-1).view(np.uint8).data
        weights.append((tensor.SerializeToString(), content))
    del proto.graph.initializer[:]
    before, after = _split_fields(proto.graph, last=5)  # initializers are field 5 of a graph
    heads = [_field_head(9, len(content)) if content else b"" for _, content in weights]
    sizes = [len(a) + len(b) + len(c) for (a, c), b in zip(weights, heads, strict=True)]
    inside = [_field_head(5, size) for size in sizes]
    total = len(before) + len(after) + sum(sizes) + sum(map(len, inside))
    proto.graph.Clear()
    first, last = _split_fields(proto, last=7)  # the graph is field 7 of a model
    yield first + _field_head(7, total) + before
    for opening, (tensor_start, content), head in zip(inside, weights, heads, strict=True):
        yield opening + tensor_start + head
        yield content
    yield after + last


def _split_fields(message: Any, *, last: int) -> tuple[bytes, bytes]:
    """Return the serialized fields of a message up to one number, and those after it."""
    before, after = type(message)(), type(message)()
    for half, wanted in ((before, True), (after, False)):
        half.CopyFrom(message)
        for field, _ in message.ListFields():
            if (field.number <= last) != wanted or field.number == last:
                half.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _field_head(number: int, length: int) -> bytes:
    """Return the head of a field of a protobuf message: its number and the length of its bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Encode seven bits per byte, the lowest first; the eighth bit says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def clear_metadata(model: ir.Model) -> ir.Model:
    """Return a copy without what exporters leave in nodes: source lines, local paths. Weights are shared."""
    model = model.clone()
    ClearMetadataAndDocStringPass()(model)
    for value in ir.convenience.create_value_mapping(model.graph).values():
        value.metadata_props.clear()
    model.ir_version, model.producer_name, model.producer_version = IR_VERSION, PRODUCER, None
    model.metadata_props.clear()
    return model


@contextmanager
def stage_files(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; its files move into `folder` when all went well, and vanish otherwise.

    Each file replaces its older one in one step, so an interruption leaves whole files, the last good ones.
    Weights in a file of their own come first, and older ones go last: the model file beside them, which names
    the one or the other, is right at any moment.

    Raises:
        OutputError: where files cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder to write to, found a file; choose another --out")
    with raise_on_signal(), explain_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Within it: beside it may be another disk (a mounted folder, a link), or one that is read-only.
        with temporary_folder(folder) as aside:
            yield aside
            _move_files(aside, folder)


def _move_files(aside: Path, folder: Path) -> None:
    written = sorted(aside.iterdir(), key=lambda path: (path.suffix != DATA_SUFFIX, path.name))
    for path in written:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        if path.suffix != DATA_SUFFIX:
            sync_folder(folder)
        path.replace(folder / path.name)
    sync_folder(folder)
    names = {path.name for path in written}
    for path in (each for name in names for each in _find_weight_files(folder, name)):
        if path.name not in names:
            with suppress(OSError):  # Windows: somebody has it open; the next export deletes it
                path.unlink()


def find_stale_files(folder: Path, written: Collection[str]) -> list[Path]:
    """Return the model files in a folder that are of an earlier export; the last one has `written` files."""
    names = [name for name in FILE_NAMES.values() if name not in written]
    plan = [] if {FILE_NAMES["int8"], FILE_NAMES["npu"]} & set(written) else ["plan.json"]
    found = [folder / name for name in (*names, *plan) if (folder / name).exists()]
    return [*found, *(path for name in names for path in _find_weight_files(folder, name))]


def _find_weight_files(folder: Path, model: str) -> list[Path]:
    """Return the files with weights of a model file in a folder: the one that it names, and older ones."""
    name = re.compile(rf"{re.escape(model)}\.[0-9a-f]{{{_DIGITS}}}{re.escape(DATA_SUFFIX)}")
    return sorted(path for path in folder.glob(f"{model}.*") if name.fullmatch(path.name))
