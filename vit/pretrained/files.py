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

from vit.pretrained.documents import SourceError, read_json
from vit.tensors import CheckpointError, read_tensors

NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
WEIGHTS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin.index.json",
    ".pth",
    ".pt",
    ".bin",
    ".npz",
    ".ckpt",
    ".tar",
)
ADAPTER = "adapter_model."
AS_PYTORCH = "load them with their own library, and save the state_dict() of the PyTorch model"
BEGINNINGS = {  # of files that only look like weights, or are those of other libraries
    b"version https://git-lfs": "a Git LFS pointer, not the weights themselves; run `git lfs pull` there",
    b"<!DOCTYPE": "a web page, not weights; download the file again",
    b"<html": "a web page, not weights; download the file again",
    b"\x89HDF": f"weights of Keras or TensorFlow (HDF5); {AS_PYTORCH}",
    b"GGUF": f"weights of llama.cpp (GGUF); {AS_PYTORCH}",
    b"\x93NUMPY": f"one array of NumPy; {AS_PYTORCH}",
    b"\x1f\x8b": "a compressed archive; unpack it, and give what is inside",
}
OTHERS = {  # by the end of the name, where the content does not tell
    ".msgpack": f"weights of Flax; {AS_PYTORCH}",
    ".h5": f"weights of Keras or TensorFlow (HDF5); {AS_PYTORCH}",
    ".keras": f"weights of Keras; {AS_PYTORCH}",
    ".pdparams": f"weights of PaddlePaddle; {AS_PYTORCH}",
    ".gguf": f"weights of llama.cpp (GGUF); {AS_PYTORCH}",
    ".tflite": "a model of TensorFlow Lite; give the weights that it was made from",
    ".mlmodel": "a model of Core ML; give the weights that it was made from",
    ".mlpackage": "a model of Core ML; give the weights that it was made from",
    ".engine": "a plan of TensorRT; give the weights that it was made from",
    ".xml": "a model of OpenVINO; give the weights that it was made from",
    ".pt2": "a program of torch.export; save the state_dict() of the model that it was made from",
    ".zip": "an archive; unpack it, and give what is inside",
    ".tar.gz": "an archive; unpack it, and give what is inside",
    ".onnx": "an ONNX model; export it with `python -m export --onnx`",
}
SCRIPT = "a TorchScript program; save the state_dict() of the model that it was made from"


def find_weights(source: Path) -> Path:
    """Return the file of weights in a folder, or `source` itself when it is a file.

    Raises:
        SourceError: when there is none, or more than one and none has the usual name.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        hint = "download the model first, and give its folder or its file of weights"
        raise SourceError(f"{source}: no such folder or file; {hint}")
    for name in (*NAMES, *(name + INDEX for name in NAMES)):
        if (source / name).is_file():
            return source / name
    others = sorted(p for p in source.iterdir() if p.name.endswith(WEIGHTS) and p.name != "training_args.bin")
    if len(others) != 1:
        raise SourceError(f"{source}: expected one file of weights, found {_found(source, others)}")
    return others[0]


def _found(source: Path, others: list[Path]) -> str:
    if others:
        return f"{', '.join(path.name for path in others)}; give the file itself"
    inside = sorted(p.parent.name for name in NAMES for p in source.glob(f"*/{name}"))
    if inside:
        return f"none, but {', '.join(inside)} inside have weights; give {source / inside[-1]}"
    named = [(p.name, said) for p in sorted(source.iterdir()) if (said := of_another(p.name))]
    if named and not named[0][0].endswith(".onnx"):
        return f"none, but {named[0][0]}: {named[0][1]}"
    if list(source.glob("*.onnx")) or list(source.glob("onnx/*.onnx")):
        return f"none, but an ONNX model; export it with `python -m export --onnx {source}`"
    return "none; give the file itself"


def of_another(name: str) -> str:
    """Say what a file of this name is, where it belongs to another library; else empty."""
    return next((said for end, said in OTHERS.items() if name.lower().endswith(end)), "")


def description_folder(source: Path, file: Path) -> Path | None:
    """The folder whose config.json belongs to the weights: the given one, or a usual file's own."""
    if source.is_dir():
        return source
    return file.parent if file.name in NAMES or file.name.endswith(INDEX) else None


def read_weights(file: Path) -> Any:
    """Return what the file holds: the tensors by their names, in containers where a pickle has some.

    Raises:
        SourceError: naming the file, and what it is where it is something else than weights.
    """
    if file.name.startswith(ADAPTER):
        raise SourceError(f"{file}: {LORA}")
    if file.name.endswith(INDEX):
        return read_shards(file)
    with file.open("rb") as opened:
        start = opened.read(32)
    if not start:
        raise SourceError(f"{file}: an empty file; copy it again")
    for beginning, meaning in BEGINNINGS.items():
        if start.lower().startswith(beginning.lower()):
            raise SourceError(f"{file}: {meaning}")
    if meaning := of_another(file.name):
        raise SourceError(f"{file}: {meaning}")
    if file.suffix == ".npz":
        return read_npz(file)
    return read_shard(file)


LORA = (
    "LoRA weights, which change a model and are none; merge them into theirs with peft's "
    "merge_and_unload(), save that model, and import it"
)


def read_shard(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return read_pickle(file)
    try:
        return read_tensors(file)[0]
    except CheckpointError as error:
        raise SourceError(str(error)) from error


def read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map", {})
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise SourceError(f"{index}: names {name!r}, which is not a file beside it")
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
