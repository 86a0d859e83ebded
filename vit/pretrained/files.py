"""Tensors out of files that others wrote, without executing anything in them."""

from __future__ import annotations

import argparse
import math
import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from runtime.model_file.data_file import is_beside
from vit.document import CheckpointError
from vit.pretrained.documents import SourceError, read_json
from vit.pretrained.places import INDEX, SCRIPT, refuse_other_files
from vit.tensors import read_tensors

SHARDS = (".safetensors", ".bin", ".pt", ".pth")
MOST_UNPACKED = 100  # bytes for each byte of an archive; weights, compressed, have hardly more than one


def read_weights(file: Path) -> Any:
    """Return what the file holds: the tensors by their names, in containers where a pickle has some.

    Raises:
        SourceError: naming the file, and what it is where it is something else than weights.
    """
    refuse_other_files(file)
    if file.name.endswith(INDEX):
        return read_shards(file)
    if file.suffix == ".npz":
        return read_npz(file)
    return read_shard(file)


def read_shard(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return read_pickle(file)
    try:
        return read_tensors(file)[0]
    except CheckpointError as error:
        raise SourceError(str(error)) from error


def read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise SourceError(f"{index}: expected weight_map, an object of tensors and their files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (is_beside(name) and name.endswith(SHARDS)):
            raise SourceError(f"{index}: names {name!r:.60}, which is no file of weights beside it")
        if not (index.parent / name).is_file():
            raise SourceError(f"{index.parent / name}: missing, but {index.name} names it; copy it again")
        tensors |= _named(read_shard(index.parent / name), index.parent / name)
    return tensors


def _named(found: Any, file: Path) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise SourceError(f"{file}: expected tensors by their names, found a {type(found).__name__}")
    return found


def read_npz(file: Path) -> dict[str, Tensor]:
    try:
        _check_archive(file)
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except SourceError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        NotImplementedError,  # another compression than zipfile knows
        RuntimeError,  # an encrypted archive
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise SourceError(f"{file}: not a complete .npz file of arrays ({error}); copy it again") from error


def _check_archive(file: Path) -> None:
    """Refuse what an archive claims and cannot hold, before memory is taken for it.

    Raises:
        SourceError: for an archive that unpacks to far more than it is, or an array larger than its entry.
    """
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_UNPACKED * max(file.stat().st_size, 2**20):
            raise SourceError(
                f"{file}: an archive of {file.stat().st_size:,} bytes that unpacks to {unpacked:,} is no "
                "file of weights; do not use it"
            )
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as opened:
                    claimed = _claimed_bytes(opened)
                if claimed > entry.file_size:
                    raise SourceError(
                        f"{file}: {entry.filename:.60} claims {claimed:,} bytes and holds "
                        f"{entry.file_size:,}; copy it again"
                    )


def _claimed_bytes(opened: IO[bytes]) -> int:
    """Return how many bytes the header of a .npy file says that its array has."""
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(opened)
    return math.prod(shape) * dtype.itemsize


def read_pickle(file: Path) -> Any:
    try:
        # A Namespace is a bag of values: training scripts store their arguments in one.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about unusual pickles; an error follows where it matters
            if zipfile.is_zipfile(file):
                _check_archive(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except SourceError:
        raise
    except pickle.UnpicklingError as error:
        hint = "it holds more than tensors, and is not executed; save its state_dict() alone"
        raise SourceError(f"{file}: {hint}") from error
    except Exception as error:  # bytes that are no pickle are read as one: there is no list of what follows
        if "TorchScript" in str(error):
            raise SourceError(f"{file}: {SCRIPT}") from error
        said = " ".join(str(error).split()).partition(". ")[0]
        raise SourceError(f"{file}: not a complete PyTorch file ({said}); copy or save it again") from error
