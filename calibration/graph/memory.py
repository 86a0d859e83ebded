"""A model handed to ONNX Runtime: as bytes, or, when it is large, through files that it maps into memory."""

from __future__ import annotations

import gc
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from runtime.interrupts import raise_on_signal
from runtime.session import open_session, trim_memory
from runtime.writing import temporary_folder

if TYPE_CHECKING:
    from runtime.model_file.targets import Target
    from runtime.onnx_runtime import onnxruntime as ort

# Bytes of weights from which files are used. Bytes in memory exist three times while a session opens (in the
# message, serialized, and in the session), and a message of 2 GB or more cannot be serialized at all.
LARGE = 2**28
SMALL = 2**10  # bytes of a tensor that stays in the message
WEIGHTS = "weights.bin"  # the file beside


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all initializers, in bytes."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


@contextmanager
def aside(model: ir.Model) -> Iterator[bool]:
    """Keep the weights of a large model in a temporary file while a block runs, instead of in memory.

    Sessions map that file too, so none of them needs a copy to be opened from. After the block the weights
    are gone. A small model stays in memory.

    Yields:
        True where the model is large.
    """
    if weight_bytes(model) < LARGE:
        yield False
        return
    with raise_on_signal(), temporary_folder() as folder:
        ir.external_data.unload_from_model(model, folder, WEIGHTS, size_threshold_bytes=SMALL)
        yield True


def let_go(model: ir.Model) -> None:
    """Give back the memory of weights that were read from a file, and of sessions that are closed.

    The weights are read again when they are needed. A model in memory is left as it is.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    mapped = [each.raw for each in tensors if isinstance(each, ir.ExternalTensor) and each.raw is not None]
    for each in mapped:
        if hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
            each.madvise(mmap.MADV_DONTNEED)
    if any(isinstance(each, ir.ExternalTensor) for each in tensors):
        gc.collect()  # nodes that were taken out of a graph refer to each other in circles, and to weights
        trim_memory()


@contextmanager
def serialized(model: ir.Model) -> Iterator[bytes | Path]:
    """Give the model as what ONNX Runtime opens: its bytes, or a temporary file with the weights beside it.

    A session that was opened from the file keeps working after the file is gone.
    """
    values = model.graph.initializers.values()
    kept = [each.const_value for each in values if isinstance(each.const_value, ir.ExternalTensor)]
    in_memory = weight_bytes(model) - sum(each.nbytes for each in kept)
    if in_memory < LARGE and len({str(each.base_dir) for each in kept}) == 1:
        with tempfile.NamedTemporaryFile(dir=str(kept[0].base_dir), suffix=".onnx", delete=False) as file:
            file.write(ir.to_proto(model).SerializeToString())
        try:
            yield Path(file.name)
        finally:
            Path(file.name).unlink(missing_ok=True)
        return
    if weight_bytes(model) < LARGE:
        yield ir.to_proto(model).SerializeToString()
        return
    with raise_on_signal(), temporary_folder() as folder:
        path = folder / "model.onnx"
        ir.save(model, path, external_data=WEIGHTS)
        let_go(model)
        yield path


def session_of(
    model: ir.Model, *, threads: int | None = None, target: Target = "any-cpu"
) -> ort.InferenceSession:
    """Open a model on the CPU; arguments and errors are those of `runtime.session.open_session`."""
    with serialized(model) as data:
        return open_session(data, device="cpu", threads=threads, target=target)
