"""The state dictionary in what training tools saved: which set of weights, without the names of wrappers.

Nothing is dropped in silence: each choice is a note, and what cannot be used is refused by its name.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.config import ConfigError
from vit.pretrained.description import SourceError, as_fields
from vit.pretrained.formats import FORMATS, Tensors, rename_tensors
from vit.pretrained.weight_files import LORA

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
_PLAIN = "state_dict model_state_dict model_state model module net network weights params"
CONTAINERS = (*AVERAGED, *_PLAIN.split(), "student")
# Wrappers that put their name in the middle of a tensor's.
INNER = re.compile(r"(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|_forward_module)\.")
COMPANIONS = re.compile(r"n_averaged|(?:criterion|loss_fn|loss|metrics?|\w+_metrics?)\..*")
QUANTIZED = re.compile(r".*\.(?:SCB|absmax|quant_map|quant_state.*|qweight|qzeros|scales|weight_format)")
DEEPEST = 16  # containers inside each other; a pickle can hold one that holds itself
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOAT = "save the model in float32, float16 or bfloat16 and import that; INT8 is made by the export"


@dataclass(frozen=True)
class StateDict:
    """The tensors of one model under its own names, and what was chosen on the way."""

    tensors: Tensors  # float32
    notes: tuple[str, ...]
    arguments: Mapping[str, Any]  # of the training script, where the file holds them


def unwrap_state_dict(content: Any, file: Path, *, weights: str | None = None) -> StateDict:
    """Find the state dictionary in what a file holds, as `torch.load` gives it, and its tensors' own names.

    `weights` is the container to take ("state_dict", "model", …); None prefers a moving average, as timm
    does. Raises a `SourceError` for adapters, quantized weights, NaN, infinity, and what is no state dict.
    """
    found, notes, arguments = _open_containers(content, file, weights)
    try:
        tensors = rename_tensors((str(n), INNER.sub("", str(n)), value) for n, value in found.items())
        _merge_adapters(tensors, file)
        tensors, more = _strip_prefix(tensors, weights)
    except ConfigError as error:
        hint = "save the state_dict() of the ViT alone, or export the whole model to ONNX"
        raise SourceError(f"{file}: {error}; {hint}") from error
    _refuse_values(tensors, file)
    as_float = {name: each.float() if each.is_floating_point() else each for name, each in tensors.items()}
    return StateDict(as_float, (*notes, *more), arguments)


def _open_containers(
    content: Any, file: Path, weights: str | None
) -> tuple[dict[Any, Tensor], list[str], dict[str, Any]]:
    """Return the tensors inside the containers, which ones were chosen, and the script's arguments."""
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    depth = 0
    while isinstance(content, Mapping) and (depth := depth + 1) <= DEEPEST:
        for name in ("args", "hyper_parameters", "config", "model_args"):
            given = content.get(name)
            given = vars(given) if isinstance(given, Namespace) else given
            arguments |= as_fields(given)
        sets = [name for name in CONTAINERS if isinstance(content.get(name), Mapping) and content[name]]
        if weights is not None and isinstance(content.get(weights), Mapping):
            sets = [weights, *(name for name in sets if name != weights)]
        if not sets:
            break
        notes += _note_choice(sets[0], sets[1:])
        content = content[sets[0]]
    hint = "save the state_dict() of the model"
    if not (isinstance(content, Mapping) and content):
        kind = "an empty one" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise SourceError(f"{file}: expected a dictionary of tensors by their names, found {kind}; {hint}")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    _refuse_forms(tensors, file)
    if len(tensors) < len(content) and not _find_prefixes(tensors):
        other = next(name for name, value in content.items() if not isinstance(value, Tensor))
        kind = type(content[other]).__name__
        raise SourceError(f"{file}: expected a dictionary of tensors, found {other!r}, a {kind}; {hint}")
    return tensors, notes, arguments


def _note_choice(chosen: str, others: list[str]) -> list[str]:
    if not others:
        return []
    listed = ", ".join(repr(each or "no prefix") for each in others)
    return [f"the weights under {chosen!r} were taken; --weights takes another set: {listed}"]


def _find_prefixes(names: Iterable[Any]) -> list[str]:
    """Return what stands in front of the names of each model in the dictionary."""
    patterns = [rf"((?:.*\.)?)(?:{form.signature})" for form in FORMATS]
    matches = (re.fullmatch(pattern, str(name)) for name in names for pattern in patterns)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _strip_prefix(tensors: Tensors, weights: str | None) -> tuple[Tensors, list[str]]:
    """Return the names of one model without what wrappers put in front, however many and in any order."""
    prefixes = _find_prefixes(tensors)
    if not prefixes:
        return tensors, []
    chosen = min(prefixes, key=lambda each: (_rank(each, weights), len(each)))
    parts = chosen.split(".")[:-1]
    outside = tuple(prefix for prefix in prefixes if not chosen.startswith(prefix))
    own: list[tuple[str, str, Tensor]] = []
    for name, value in tensors.items():
        if name.startswith(outside) or COMPANIONS.fullmatch(name):
            continue
        words = name.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(parts, words, strict=False)) if a != b), len(parts))
        own.append((name, ".".join(words[shared:]), value))
    return rename_tensors(own), _note_choice(chosen, [prefix for prefix in prefixes if prefix != chosen])


def _rank(prefix: str, weights: str | None) -> int:
    """Return 0 for the set that was asked for, 1 for a moving average, 3 for a student, 2 for any other."""
    parts = prefix.split(".")
    if weights is not None and weights.strip(".") in (*parts, prefix.strip(".")):
        return 0
    if any(part in AVERAGED or "ema" in part.split("_") for part in parts):
        return 1
    return 3 if "student" in parts else 2


def _merge_adapters(tensors: Tensors, file: Path) -> None:
    """Rename what peft leaves after merging, in place; refuse LoRA, FSDP's and quantized weights by name."""
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
    """Refuse tensors that hold no values, or fewer than their shapes need: a copy would take any memory."""
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


def _refuse_values(tensors: Tensors, file: Path) -> None:
    """Refuse weights that are quantized, complex, or not finite."""
    for name, value in tensors.items():
        narrow = value.is_floating_point() and value.dtype not in FLOATS
        if narrow or (name.endswith(("weight", "bias")) and value.dtype not in FLOATS):
            kind = "complex weights" if value.is_complex() else "quantized weights"
            raise SourceError(f"{file}: {kind} ({name} is {value.dtype}); {FLOAT}")
    if bad := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        hint = "the training diverged (often in float16): take an earlier checkpoint"
        raise SourceError(f"{file}: {bad[0]} holds NaN or infinity ({len(bad)} tensors do); {hint}")
