"""The file that holds the weights, and its tensors, without executing anything in it.

Torch is imported when tensors are read: a command checks its files before it pays for that.
"""

from __future__ import annotations

import argparse
import math
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from runtime.command.file_kinds import Kind, detect_file_kind
from runtime.model_file.integrity import is_beside
from vit.document import FILE_NAME, KEY, CheckpointError
from vit.pretrained.description import SourceError, read_json
from vit.pretrained.hub import download, name_snapshot

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
SHARDS = (".safetensors", ".bin", ".pt", ".pth")
WEIGHTS = (*SHARDS, ".safetensors.index.json", ".bin.index.json", ".npz", ".ckpt", ".tar")
ADAPTER = "adapter_model."
TOKENIZER_FILES = (  # of CLIP, SigLIP and SigLIP 2, fast and slow
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "spiece.model", "tokenizer.model"),
)
AS_PYTORCH = "load them with their own library, and save the state_dict() of the PyTorch model"
WRONG_KINDS: Mapping[Kind, str] = {
    "pointer": "then give the file again",
    "page": "download the file again",
    "others": AS_PYTORCH,
    "array": AS_PYTORCH,
    "archive": "unpack it, and give what is inside",
    "empty": "copy it again",
}
GIVE_WEIGHTS = "give the weights that it was made from"
OTHERS = {  # by the end of the name, where the content does not show it
    ".msgpack": f"weights of Flax; {AS_PYTORCH}",
    ".h5": f"weights of Keras or TensorFlow (HDF5); {AS_PYTORCH}",
    ".keras": f"weights of Keras; {AS_PYTORCH}",
    ".pdparams": f"weights of PaddlePaddle; {AS_PYTORCH}",
    ".gguf": f"weights of llama.cpp (GGUF); {AS_PYTORCH}",
    ".tflite": f"a model of TensorFlow Lite; {GIVE_WEIGHTS}",
    **dict.fromkeys((".mlmodel", ".mlpackage"), f"a model of Core ML; {GIVE_WEIGHTS}"),
    ".engine": f"a plan of TensorRT; {GIVE_WEIGHTS}",
    ".xml": f"a model of OpenVINO; {GIVE_WEIGHTS}",
    ".pt2": "a program of torch.export; save the state_dict() of the model that it was made from",
    **dict.fromkeys((".zip", ".tar.gz"), "an archive; unpack it, and give what is inside"),
    ".onnx": "an ONNX model; export it with `python -m export --onnx`",
}
SCRIPT = "a TorchScript program; save the state_dict() of the model that it was made from"
LORA = (
    "LoRA weights, which change a model and are none; merge them into theirs with peft's "
    "merge_and_unload(), save that model, and import it"
)
# What zipfile and numpy raise for a damaged archive, one that is encrypted, or of an unknown compression.
DAMAGED = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
MOST_UNPACKED = 100  # bytes for each byte of an archive; weights, compressed, have hardly more than one


# --- The file ---


def find_weights(source: Path) -> Path:
    """Return the file of weights in a folder, or `source` itself when it is a file.

    Args:
        source: a file, or a folder with one.

    Raises:
        SourceError: when there is none, or more than one and none has the usual name.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        hint = "give the folder or the file of weights, or hf:OWNER/NAME of the Hugging Face hub"
        raise SourceError(f"{source}: no such folder or file; {hint}")
    found = choose_weights([path.name for path in source.iterdir()])
    if len(found) != 1:
        raise SourceError(f"{source}: expected one file of weights, found {_describe_found(source, found)}")
    return source / found[0]


def choose_weights(names: Collection[str]) -> list[str]:
    """Return the usual file of weights among the names of a folder; without one, all that may be it.

    Args:
        names: of files; those in folders of their own do not count.
    """
    usual = (name + end for name in NAMES for end in ("", INDEX))
    if (first := next((name for name in usual if name in names), None)) is not None:
        return [first]
    weights = (name for name in names if name.endswith(WEIGHTS) and "/" not in name)
    return sorted(name for name in weights if name != "training_args.bin")


def fetch_weights(source: Path, *, plain: bool = False, tokenizer: bool = False) -> Path:
    """Download weights by their name on the hub: safetensors, or a .bin where there are none.

    Args:
        source: a name, as `hub.download` takes it; a path is returned as it is.
        plain: take OWNER/NAME for a name too, where nothing of that name is here.
        tokenizer: the files of a tokenizer, too, for classes in words.

    Returns:
        A folder, or the file that the name has.

    Raises:
        SourceError, FailureError, MissingPackageError: as `hub.download`.
    """
    plain = plain and not source.name.endswith((*WEIGHTS, *OTHERS))
    more = TOKENIZER_FILES if tokenizer else ()

    def list_beside(file: Path) -> set[str]:
        return _list_shards(file).union(more)

    return download(source, choose_weights, list_beside, what="a file of weights", plain=plain)


def _list_shards(file: Path) -> set[str]:
    """Return the files that an index names; none for any other file."""
    named = read_json(file).get("weight_map") if file.name.endswith(INDEX) else None
    return {str(name) for name in named.values()} if isinstance(named, dict) else set()


def _describe_found(source: Path, others: list[str]) -> str:
    """Say what a folder holds in the place of one file of weights, and what to do."""
    if others:
        return f"{', '.join(others)}; give the file itself"
    inside = sorted(p.parent.name for name in NAMES for p in source.glob(f"*/{name}"))
    if inside:
        return f"none, but {', '.join(inside)} inside have weights; give {source / inside[-1]}"
    name = next((path.name for path in sorted(source.iterdir()) if identify_other(path.name)), "")
    if name and not name.endswith(".onnx"):
        return f"none, but {name}: {identify_other(name)}"
    if list(source.glob("*.onnx")) or list(source.glob("onnx/*.onnx")):
        return f"none, but an ONNX model; export it with `python -m export --onnx {source}`"
    return "none; give the file itself"


def name_weights(path: Path) -> str:
    """Return the name of a model: of its folder or, on the hub, its repository; or of its file.

    Args:
        path: its folder, or one file of weights.
    """
    return (name_snapshot(path) or path.resolve().name) if path.is_dir() else path.stem


def identify_other(name: str) -> str:
    """Say what a file of this name is, where it belongs to another library; else empty."""
    return next((meaning for end, meaning in OTHERS.items() if name.lower().endswith(end)), "")


def holds_weights(path: Path) -> bool:
    """Return whether a file or folder holds weights of another project, not a checkpoint of this one.

    Args:
        path: whatever it is; reading it as a checkpoint finds what is wrong with it.
    """
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        return path.is_dir() and any(each.name.endswith(WEIGHTS) for each in path.iterdir())
    if file.suffix != ".safetensors":
        return file.name.endswith(WEIGHTS) or (bool(identify_other(file.name)) and file.suffix != ".onnx")
    try:
        with safe_open(file, framework="numpy") as opened:
            return KEY not in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def find_description_folder(source: Path, file: Path) -> Path | None:
    """Return the folder whose config.json belongs to the weights: the given one, or a usual file's own."""
    if source.is_dir():
        return source
    return file.parent if file.name in NAMES or file.name.endswith(INDEX) else None


def refuse_other_files(file: Path) -> None:
    """Refuse a file that is known to hold no weights, by its name or its first bytes.

    Args:
        file: a regular file.

    Raises:
        SourceError: saying what it is, and what to do.
    """
    if file.name.startswith(ADAPTER):
        raise SourceError(f"{file}: {LORA}")
    if file.name.endswith(INDEX):
        return
    kind, words = detect_file_kind(file)
    if kind in WRONG_KINDS:
        raise SourceError(f"{file}: expected weights of PyTorch, found {words}; {WRONG_KINDS[kind]}")
    if meaning := identify_other(file.name):
        raise SourceError(f"{file}: {meaning}")


def read_labels(file: Path) -> tuple[str, ...]:
    """Read the names of the classes, one per line; a file without names is a `SourceError`."""
    expected = "a text file with the name of a class on each line"
    if not file.exists():
        raise SourceError(f"{file}: no such file; give {expected}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: expected {expected}; it cannot be read ({error})") from error
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise SourceError(f"{file}: expected the name of a class on each line, found no line")
    return labels


# --- Its tensors ---


def read_weights(file: Path) -> Any:
    """Return what the file holds: the tensors by their names, in containers where a pickle has some."""
    refuse_other_files(file)
    if file.name.endswith(INDEX):
        return _read_shards(file)
    return _read_npz(file) if file.suffix == ".npz" else _read_shard(file)


def _read_shard(file: Path) -> Any:
    if file.suffix != ".safetensors":
        return _read_pickle(file)
    from vit.checkpoint import read_tensors

    try:
        return read_tensors(file)[0]
    except CheckpointError as error:
        raise SourceError(str(error)) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise SourceError(f"{index}: expected weight_map, an object of tensors and their files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        file = index.parent / name
        if not (is_beside(name) and name.endswith(SHARDS)):
            raise SourceError(f"{index}: names {name!r:.60}, which is no file of weights beside it")
        if not file.is_file():
            raise SourceError(f"{file}: missing, but {index.name} names it; copy it again")
        found = _read_shard(file)
        if not isinstance(found, dict):
            raise SourceError(f"{file}: expected tensors by their names, found a {type(found).__name__}")
        tensors |= found
    return tensors


def _read_npz(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        _check_archive(file)
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except SourceError:
        raise
    except DAMAGED as error:
        raise SourceError(f"{file}: not a complete .npz file of arrays ({error}); copy it again") from error


def _check_archive(file: Path) -> None:
    """Refuse what an archive claims and cannot hold, before memory is taken for it."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MOST_UNPACKED * max(packed := file.stat().st_size, 2**20):
            found = f"an archive of {packed:,} bytes that unpacks to {unpacked:,}"
            raise SourceError(f"{file}: {found} is no file of weights; do not use it")
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as opened:
                    claimed = _count_claimed_bytes(opened)
                if claimed > entry.file_size:
                    found = f"{entry.filename:.60} claims {claimed:,} bytes and holds {entry.file_size:,}"
                    raise SourceError(f"{file}: {found}; copy it again")


def _count_claimed_bytes(opened: IO[bytes]) -> int:
    """Return how many bytes the array of a .npy file has by its header."""
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(opened)
    return math.prod(shape) * dtype.itemsize


def _read_pickle(file: Path) -> Any:
    import torch

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
        first = " ".join(str(error).split()).partition(". ")[0]
        raise SourceError(f"{file}: not a complete PyTorch file ({first}); copy or save it again") from error
