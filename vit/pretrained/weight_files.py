"""Which file holds the weights, and what is none. Known without torch."""

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
from vit.checkpoint import read_tensors
from vit.document import CheckpointError
from vit.pretrained.documents import SourceError, read_json

# --- Which file holds the weights, and what is none. Known without torch ---


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


LORA = (
    "LoRA weights, which change a model and are none; merge them into theirs with peft's "
    "merge_and_unload(), save that model, and import it"
)


def refuse_other_files(file: Path) -> None:
    """Refuse a file that is known to hold no weights, by its name or its first bytes.

    Raises:
        SourceError: saying what it is, and what to do.
    """
    if file.name.startswith(ADAPTER):
        raise SourceError(f"{file}: {LORA}")
    if file.name.endswith(INDEX):
        return
    with file.open("rb") as opened:
        start = opened.read(32)
    if not start:
        raise SourceError(f"{file}: an empty file; copy it again")
    for beginning, meaning in BEGINNINGS.items():
        if start.lower().startswith(beginning.lower()):
            raise SourceError(f"{file}: {meaning}")
    if meaning := of_another(file.name):
        raise SourceError(f"{file}: {meaning}")


def read_labels(file: Path) -> tuple[str, ...]:
    """Read the names of the classes, one per line.

    Raises:
        SourceError: for a file that cannot be read, has no names, or one name twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SourceError(
            f"{file}: no such file; give a text file with the name of a class on each line"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{file}: expected a text file with the name of a class on each line; it cannot be read ({error})"
        ) from error
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise SourceError(f"{file}: expected the name of a class on each line, found no line")
    return labels


# --- Tensors out of files that others wrote, without executing anything in them ---


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
