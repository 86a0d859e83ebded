"""The second file of a model whose weights are too large for an .onnx file: which one, and is it whole.

The .onnx file holds its name, size and SHA-256, so the SHA-256 of the .onnx file vouches for both. The name
is a stranger's: it is of a file beside the .onnx file. That file may be a link, as caches store models, since
the folder is the user's; what it leads to is a regular file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from ..strict_json import parse_json
from .metadata import ArtifactError
from .onnx_file import OnnxSummary

DATA_KEY = "vit_edge_data"  # of the entry in ModelProto.metadata_props
DATA_SUFFIX = ".data"
_CHUNK = 2**22  # bytes
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# What Windows takes for a device in any folder, with any suffix.
_DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$")) | {
    f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"
}


def check_data(model: OnnxSummary, source: Path | bytes) -> tuple[Path, tuple[int, ...]]:
    """Check the file with the weights of a model that has them beside it.

    Args:
        model: outline of the .onnx file.
        source: the .onnx file; bytes have no file beside them.

    Returns:
        The file, and what tells whether it was replaced since.

    Raises:
        ArtifactError: when it is missing, another one than the model was written with, or not allowed. The
            digest of what was found is not told: it may be of any file.
    """
    name, size, sha256 = _described(model)
    if isinstance(source, bytes):
        raise ArtifactError(
            f"its weights are in another file, {name}: give the path of the .onnx file beside it"
        )
    path = source.parent / name
    try:
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if stamp[2] != size:
                raise ArtifactError(
                    f"its weights in {name} have {stamp[2]:,} bytes, expected {size:,}; copy both files again"
                )
            digest, left = hashlib.sha256(), size
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
    except FileNotFoundError:
        raise ArtifactError(
            f"its weights lie in {name}, {size:,} bytes, which is missing beside it; copy both files"
        ) from None
    except OSError as error:
        raise ArtifactError(f"its weights in {name} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != sha256:
        raise ArtifactError(f"the SHA-256 of {name} is not the expected one, {sha256}; copy both files again")
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
    if not known or model.data_files != {name} or not is_beside(name):
        named = ", ".join(sorted(model.data_files)) or "none"
        raise ArtifactError(
            f"its weights are in {named}, expected the one file beside it of {DATA_KEY}; export it again"
        )
    return name, size, sha256


def is_beside(name: str) -> bool:
    """Return whether a name that a model states is, on every system, of a file in the folder of the model.

    It holds no separator, drive or stream (`:`), control character, or name of a device, and it does not end
    with what Windows drops, a dot or a space.
    """
    stem = name.partition(".")[0].rstrip(" ").upper()
    plain = not any(character in "/\\:" or character < " " for character in name)
    return plain and name == name.rstrip(". ") != "" and stem not in _DEVICES


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to be read, through links too; a pipe is not waited for, a device not opened.

    Raises:
        OSError: when it is none, or cannot be opened.
    """
    try:
        _expect_regular(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, "a link to a file that is not there") from None
        raise
    # It may be another one by now.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    file = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115
    try:
        _expect_regular(os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _expect_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"expected a file, found {_KINDS.get(stat.S_IFMT(mode), 'a device')}")


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
