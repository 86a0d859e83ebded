"""Tensors out of files that others wrote, without executing anything in them."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.model_file.data_file import is_beside
from vit.document import CheckpointError
from vit.pretrained.documents import SourceError, read_json
from vit.pretrained.places import INDEX, SCRIPT, refuse_other_files
from vit.tensors import read_tensors


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
    places = read_json(index).get("weight_map", {})
    names = list(places.values()) if isinstance(places, dict) else [places]
    for name in names:
        if not (isinstance(name, str) and is_beside(name)):
            raise SourceError(f"{index}: names {name!r:.60}, which is not a file beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names)):
        if not (index.parent / name).is_file():
            raise SourceError(f"{index.parent / name}: missing, but {index.name} names it; copy it again")
        tensors |= read_shard(index.parent / name)
    return tensors


def read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{file}: not a complete .npz file of arrays ({error}); copy it again") from error


def read_pickle(file: Path) -> Any:
    try:
        # A Namespace is a bag of values: training scripts store their arguments in one.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about unusual pickles; an error follows where it matters
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "it holds more than tensors, and is not executed; save its state_dict() alone"
        raise SourceError(f"{file}: {hint}") from error
    except Exception as error:  # bytes that are no pickle are read as one: there is no list of what follows
        if "TorchScript" in str(error):
            raise SourceError(f"{file}: {SCRIPT}") from error
        said = " ".join(str(error).split()).partition(". ")[0]
        raise SourceError(f"{file}: not a complete PyTorch file ({said}); copy or save it again") from error
