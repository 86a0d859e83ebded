"""Tensors out of files that others wrote, without executing anything in them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit.pretrained.documents import SourceError, read_json
from vit.tensors import CheckpointError, read_tensors

NAMES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (".safetensors", ".safetensors.index.json", ".pth", ".pt", ".bin", ".npz")
INDEX = "model.safetensors.index.json"
WRAPPERS = ("model", "state_dict", "model_state", "teacher")  # under which training scripts store the weights


def find_weights(source: Path) -> Path:
    """The file of weights in a folder, or `source` itself when it is a file."""
    if source.is_file():
        return source
    if not source.is_dir():
        hint = "download the model first, and give its folder or its file of weights"
        raise SourceError(f"{source}: no such folder or file; {hint}")
    for name in (*NAMES, INDEX):
        if (source / name).is_file():
            return source / name
    others = sorted(
        p for p in source.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".npz")
    )
    if len(others) != 1:
        found = ", ".join(p.name for p in others) or "none"
        raise SourceError(f"{source}: expected one file of weights, found {found}; give the file itself")
    return others[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a file as float32, by their names there."""
    if file.name == INDEX:
        return as_float(read_shards(file))
    if file.suffix == ".npz":
        return as_float(read_npz(file))
    if file.suffix == ".safetensors":
        try:
            return as_float(read_tensors(file)[0])
        except CheckpointError as error:
            raise SourceError(str(error)) from error
    return as_float(unwrapped(read_pickle(file), file))


def read_shards(index: Path) -> dict[str, Tensor]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise SourceError(f"{index}: names {name!r}, which is not a file beside it")
        try:
            tensors |= read_tensors(index.parent / name)[0]
        except CheckpointError as error:
            raise SourceError(str(error)) from error
    return tensors


def read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{file}: not a complete .npz file of arrays ({error}); copy it again") from error


def read_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; an error follows where it matters
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "it holds more than tensors, and is not executed; save its state_dict() alone"
        raise SourceError(f"{file}: {hint}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SourceError(f"{file}: not a complete PyTorch file ({str(error).splitlines()[0]})") from error


def unwrapped(found: Any, file: Path) -> dict[str, Tensor]:
    """The state dictionary in what a training script saved."""
    while isinstance(found, Mapping):
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SourceError(f"{file}: expected a dictionary of tensors, found {type(found).__name__}")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def as_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
