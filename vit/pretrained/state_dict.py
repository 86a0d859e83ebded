"""The weights in what training tools saved: which set, without the names that wrappers put in front.

Nothing is dropped in silence: each choice is a note, and what cannot be used is refused by its name.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.config import ConfigError
from vit.pretrained.documents import SourceError
from vit.pretrained.formats import TELLS, Tensors, renamed
from vit.pretrained.weight_files import LORA

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
CONTAINERS = (*AVERAGED, *PLAIN, "student")
# Wrappers that put their name in the middle of a tensor's.
INNER = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
COMPANIONS = re.compile(r"n_averaged|(?:criterion|loss_fn|loss|metrics?|\w+_metrics?)\..*")
QUANTIZED = re.compile(r".*\.(?:SCB|absmax|quant_map|quant_state.*|qweight|qzeros|scales|weight_format)")
DEEPEST = 16  # containers inside each other; a pickle can hold one that holds itself
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Unwrapped:
    """The tensors of one model under its own names, and what was chosen on the way."""

    tensors: Tensors  # float32
    notes: tuple[str, ...]
    arguments: Mapping[str, Any]  # of the training script, where the file holds them


def unwrapped(found: Any, file: Path, *, weights: str | None = None) -> Unwrapped:
    """Find the state dictionary in what a file holds, and its tensors' own names.

    Args:
        found: content of the file, as `torch.load` or safetensors gives it.
        file: path of the file, for messages.
        weights: the container to take ("state_dict", "model", …);
            None prefers a moving average, as timm does.

    Raises:
        SourceError: for adapters, quantized weights, numbers that are none, and for what is no state dict.
    """
    found, notes, arguments = _contents(found, file, weights)
    try:
        tensors = renamed((str(name), INNER.sub("", str(name)), value) for name, value in found.items())
        _refuse_by_name(tensors, file)
        tensors, more = _without_prefix(tensors, weights)
    except ConfigError as error:
        hint = "save the state_dict() of the ViT alone, or export the whole model to ONNX"
        raise SourceError(f"{file}: {error}; {hint}") from error
    _refuse_values(tensors, file)
    as_float = {
        name: value.float() if value.is_floating_point() else value for name, value in tensors.items()
    }
    return Unwrapped(as_float, (*notes, *more), arguments)


def _contents(
    found: Any, file: Path, weights: str | None
) -> tuple[dict[Any, Tensor], list[str], dict[str, Any]]:
    """The dictionary of tensors inside the containers, which ones were chosen, and the script's arguments."""
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    depth = 0
    while isinstance(found, Mapping) and (depth := depth + 1) <= DEEPEST:
        for name in ("args", "hyper_parameters", "config", "model_args"):
            given = found.get(name)
            given = vars(given) if isinstance(given, Namespace) else given
            arguments |= given if isinstance(given, Mapping) else {}
        sets = [name for name in CONTAINERS if isinstance(found.get(name), Mapping) and found[name]]
        if weights is not None and isinstance(found.get(weights), Mapping):
            sets = [weights, *(name for name in sets if name != weights)]
        if not sets:
            break
        if len(sets) > 1:
            others = ", ".join(repr(name) for name in sets[1:])
            notes.append(f"the weights under {sets[0]!r} were taken; --weights takes another set: {others}")
        found = found[sets[0]]
    if not isinstance(found, Mapping) or not found:
        kind = "an empty one" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        hint = "save the state_dict() of the model"
        raise SourceError(f"{file}: expected a dictionary of tensors by their names, found {kind}; {hint}")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    _refuse_forms(tensors, file)
    if len(tensors) < len(found) and not _tells(tensors):
        other = next(name for name, value in found.items() if not isinstance(value, Tensor))
        kind = type(found[other]).__name__
        hint = "save the state_dict() of the model"
        raise SourceError(f"{file}: expected a dictionary of tensors, found {other!r}, a {kind}; {hint}")
    return tensors, notes, arguments


def _tells(names: Mapping[Any, Tensor]) -> dict[str, str]:
    """Return the prefix of each model in the dictionary, with the full name of its telling tensor."""
    found: dict[str, str] = {}
    for name in names:
        for tell in TELLS:
            if match := re.fullmatch(rf"((?:.*\.)?)(?:{tell})", str(name)):
                prefix = match[1]
                if prefix not in found:
                    found[prefix] = str(name)
    return found


def _without_prefix(tensors: Tensors, weights: str | None) -> tuple[Tensors, list[str]]:
    """The names of one model without what wrappers put in front, however many and in any order."""
    prefixes = _tells(tensors)
    if not prefixes:
        return tensors, []
    chosen, notes = min(prefixes, key=lambda each: (_rank(each, weights), len(each))), []
    if len(prefixes) > 1:
        shown = ", ".join(repr(each or "no prefix") for each in prefixes if each != chosen)
        notes.append(f"the weights under {chosen!r} were taken; --weights takes another set: {shown}")
    parts = chosen.split(".")[:-1]
    others = [prefix for prefix in prefixes if prefix != chosen and not chosen.startswith(prefix)]
    own: list[tuple[str, str, Tensor]] = []
    for name, value in tensors.items():
        if any(name.startswith(prefix) for prefix in others) or COMPANIONS.fullmatch(name):
            continue
        words = name.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(parts, words, strict=False)) if a != b), len(parts))
        own.append((name, ".".join(words[shared:]), value))
    return renamed(own), notes


def _rank(prefix: str, weights: str | None) -> int:
    """0 for the set that was asked for, 1 for a moving average, 3 for a student, 2 for any other."""
    parts = prefix.split(".")
    if weights is not None and weights.strip(".") in (*parts, prefix.strip(".")):
        return 0
    if any(part in AVERAGED or "ema" in part.split("_") for part in parts):
        return 1
    return 3 if "student" in parts else 2


def _refuse_by_name(tensors: Tensors, file: Path) -> None:
    if any(".lora_" in name or name.startswith("lora_") for name in tensors):
        raise SourceError(f"{file}: {LORA}")
    if flat := next((name for name in tensors if "_flat_param" in name), None):
        hint = "gather the whole model before it is saved (FullStateDictConfig)"
        raise SourceError(f"{file}: FSDP's flattened weights ({flat}); {hint}")
    if name := next((name for name in tensors if QUANTIZED.fullmatch(name)), None):
        raise SourceError(f"{file}: quantized weights ({name}); {FLOAT}")
    for name in [name for name in tensors if ".base_layer." in name]:  # peft, after merging
        tensors[name.replace(".base_layer.", ".")] = tensors.pop(name)
    for name in [name for name in tensors if ".modules_to_save." in name]:
        tensors[re.sub(r"\.modules_to_save\.[^.]+", "", name)] = tensors.pop(name)
        tensors.pop(re.sub(r"\.modules_to_save\.[^.]+", ".original_module", name), None)


def _refuse_forms(tensors: Mapping[Any, Tensor], file: Path) -> None:
    """Refuse tensors that hold no values, or fewer than their shapes say: a copy would take any memory."""
    for name, value in tensors.items():
        what = ""
        if value.layout != torch.strided or value.is_nested:
            what = f"a sparse tensor ({value.layout})"
        elif value.is_meta:
            what = "a tensor without values (meta)"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            what = f"the shape {list(value.shape)} and fewer values (an expanded tensor)"
        if what:
            raise SourceError(
                f"{file}: {name!s:.60} has {what}; save the state_dict() with plain tensors "
                "(value.to_dense().contiguous())"
            )


FLOAT = "save the model in float32, float16 or bfloat16 and import that; INT8 is made by the export"


def _refuse_values(tensors: Tensors, file: Path) -> None:
    for name, value in tensors.items():
        narrow = value.is_floating_point() and value.dtype not in FLOATS
        if narrow or (name.endswith(("weight", "bias")) and value.dtype not in FLOATS):
            kind = "complex weights" if value.is_complex() else "quantized weights"
            raise SourceError(f"{file}: {kind} ({name} is {value.dtype}); {FLOAT}")
    bad = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        hint = "the training diverged (often in float16): take an earlier checkpoint"
        raise SourceError(f"{file}: {bad[0]} holds NaN or infinity ({len(bad)} tensors do); {hint}")
