"""A model handed to ONNX Runtime: as bytes, or, when it is large, through files that it maps into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from runtime.session import open_session

if TYPE_CHECKING:
    import onnxruntime as ort

    from runtime.model_file.targets import Target

# Bytes of weights from which files are used. Bytes in memory exist three times while a session opens (in the
# message, serialized, and in the session), and a message of 2 GB or more cannot be serialized at all.
LARGE = 2**28


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all initializers, in bytes."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


@contextmanager
def serialized(model: ir.Model) -> Iterator[bytes | Path]:
    """Give the model as what ONNX Runtime opens: its bytes, or a temporary file with the weights beside it.

    A session that was opened from the file keeps working after the file is gone.
    """
    if weight_bytes(model) < LARGE:
        yield ir.to_proto(model).SerializeToString()
        return
    # Windows does not delete a file that a session has mapped.
    with tempfile.TemporaryDirectory(prefix="vit-edge-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="weights.bin")
        yield path


def session_of(
    model: ir.Model, *, threads: int | None = None, target: Target = "any-cpu"
) -> ort.InferenceSession:
    """Open a model on the CPU; arguments and errors are those of `runtime.session.open_session`."""
    with serialized(model) as data:
        return open_session(data, device="cpu", threads=threads, target=target)
