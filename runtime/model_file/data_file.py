"""The second file of a model whose weights are too large for an .onnx file: which one, and is it whole.

The .onnx file holds its name, size and SHA-256, so the SHA-256 of the .onnx file vouches for both.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..strict_json import parse_json
from .metadata import ArtifactError
from .onnx_file import OnnxSummary

DATA_KEY = "vit_edge_data"  # of the entry in ModelProto.metadata_props
DATA_SUFFIX = ".data"
_CHUNK = 2**22  # bytes


def check_data(model: OnnxSummary, source: Path | bytes) -> tuple[Path, tuple[int, ...]]:
    """Check the file with the weights of a model that has them beside it.

    Args:
        model: outline of the .onnx file.
        source: the .onnx file; bytes have no file beside them.

    Returns:
        The file, and what tells whether it was replaced since.

    Raises:
        ArtifactError: when it is missing, another one than the model was written with, or not allowed.
    """
    name, size, sha256 = _described(model)
    if isinstance(source, bytes):
        raise ArtifactError(
            f"its weights are in another file, {name}: give the path of the .onnx file beside it"
        )
    path = source.parent / name
    try:
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            found, digest = stamp[2], hashlib.sha256()
            while found == size and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
    except FileNotFoundError:
        raise ArtifactError(
            f"its weights lie in {name}, {size:,} bytes, which is missing beside it; copy both files"
        ) from None
    except OSError as error:
        raise ArtifactError(f"its weights in {name} cannot be read: {error.strerror or error}") from error
    if found != size:
        raise ArtifactError(
            f"its weights in {name} have {found:,} bytes, expected {size:,}; copy both files again"
        )
    if digest.hexdigest() != sha256:
        raise ArtifactError(
            f"the SHA-256 of {name} is {digest.hexdigest()}, expected {sha256}; copy both files again"
        )
    return path, stamp


def _described(model: OnnxSummary) -> tuple[str, int, str]:
    """Name, bytes and SHA-256 of the one data file, as the .onnx file has them."""
    text = model.metadata.get(DATA_KEY)
    if text is None:
        raise ArtifactError("its weights are in another file that it does not vouch for; export it again")
    try:
        entry = parse_json(text)
        name, size, sha256 = entry["file"], entry["bytes"], entry["sha256"]
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"its entry {DATA_KEY} is none; export it again") from None
    known = isinstance(name, str) and type(size) is int and isinstance(sha256, str)
    if not known or model.data_files != {name} or Path(name).name != name or name in ("", ".", ".."):
        named = ", ".join(sorted(model.data_files)) or "none"
        raise ArtifactError(
            f"its weights are in {named}, expected the one file beside it of {DATA_KEY}; export it again"
        )
    return name, size, sha256


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
