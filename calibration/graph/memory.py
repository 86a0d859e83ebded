"""Sessions from a graph in memory; weights of a large model in files that ONNX Runtime maps into memory."""

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
    """Return the size of all initializers, in bytes.

    Args:
        model: the graph, with its weights in memory or on disk.
    """
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [each for each in tensors if isinstance(each, ir.ExternalTensor)]


@contextmanager
def weights_on_disk(model: ir.Model) -> Iterator[bool]:
    """Keep the weights of a large model in a temporary file while a block runs, instead of in memory.

    Sessions map that file too, so none of them needs a copy to be opened from. After the block the weights
    are gone. A small model stays in memory.

    Args:
        model: the graph; its initializers become external tensors.

    Yields:
        True where the model is large.
    """
    if weight_bytes(model) < LARGE:
        yield False
        return
    with raise_on_signal(), temporary_folder() as folder:
        ir.external_data.unload_from_model(model, folder, WEIGHTS, size_threshold_bytes=SMALL)
        yield True


def release_memory(model: ir.Model) -> None:
    """Give back the memory of weights that were read from a file, and of sessions that are closed.

    Args:
        model: its weights are read again when they are needed; a model in memory is left as it is.
    """
    external = _external_tensors(model)
    for each in external:
        if each.raw is not None and hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
            each.raw.madvise(mmap.MADV_DONTNEED)
    if external:
        gc.collect()  # nodes that were taken out of a graph refer to each other in circles, and to weights
        trim_memory()


@contextmanager
def serialize_for_session(model: ir.Model) -> Iterator[bytes | Path]:
    """Yield the bytes of a small model, the path of a temporary file with weights beside it of a large one.

    A session that was opened from the file keeps working after the file is gone.

    Args:
        model: the graph, with its weights in memory or on disk.
    """
    external, total = _external_tensors(model), weight_bytes(model)
    in_memory = total - sum(each.nbytes for each in external)
    folders = {str(each.base_dir) for each in external}
    # Weights that lie in one folder are not written again: the graph goes beside them.
    if in_memory < LARGE and len(folders) == 1:
        with tempfile.NamedTemporaryFile(dir=folders.pop(), suffix=".onnx", delete=False) as file:
            file.write(ir.to_proto(model).SerializeToString())
        try:
            yield Path(file.name)
        finally:
            Path(file.name).unlink(missing_ok=True)
    elif total < LARGE:
        yield ir.to_proto(model).SerializeToString()
    else:
        with raise_on_signal(), temporary_folder() as folder:
            path = folder / "model.onnx"
            ir.save(model, path, external_data=WEIGHTS)
            release_memory(model)
            yield path


def open_graph_session(
    model: ir.Model, *, threads: int | None = None, target: Target = "any-cpu"
) -> ort.InferenceSession:
    """Return a CPU session of a graph; errors are those of `runtime.session.open_session`.

    Args:
        model: the graph.
        threads: CPU threads; None takes every core that this process may use.
        target: form of the INT8 weights, where there are any.
    """
    with serialize_for_session(model) as data:
        return open_session(data, device="cpu", threads=threads, target=target)
