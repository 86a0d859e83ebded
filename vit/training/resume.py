"""The state of an unfinished run: with it, `--resume` gives the result of an uninterrupted run.

Random numbers need no place in it: each step draws from a generator that is seeded by the recipe's seed,
the epoch and the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from runtime.strict_json import parse_json
from runtime.text import describe_error
from vit.checkpoint import read_tensors, write_tensors
from vit.config import MOST
from vit.document import CheckpointError, is_history, read_header
from vit.run_folder import STATE, find_state

KEY = "vit_edge_state"


@dataclass
class Progress:
    """Progress of a run."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps of the current epoch that are complete
    # of the current epoch: loss, correct labels, images
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: list[float] = field(default_factory=list)  # of each epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: str = ""  # digest of the best weights, as this run wrote them
    finished: bool = False


def save_state(
    folder: Path,
    *,
    module: nn.Module,
    optimizer: Optimizer,
    average: AveragedModel | None,
    progress: Progress,
    identity: Mapping[str, Any],
) -> None:
    """Write the state beside the checkpoint; an older one is replaced only when this one is complete.

    `identity` is what must be the same when the run resumes: recipe, images, shapes.
    """
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            tensors[f"optimizer.{names[id(parameter)]}.{slot}"] = value
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    document = {"progress": asdict(progress), "identity": dict(identity)}
    write_tensors(folder / STATE, tensors, {KEY: json.dumps(document)})


def load_state(
    folder: Path,
    *,
    module: nn.Module,
    optimizer: Optimizer,
    average: AveragedModel | None,
    identity: Mapping[str, Any],
) -> Progress:
    """Put what `save_state` wrote back into `module`, `optimizer` and `average`, and return the progress.

    Raises:
        CheckpointError: when there is none, when it is incomplete, or when it is of another run.
    """
    path = find_state(folder)
    tensors, metadata = read_tensors(path)
    document = _read_document(path, metadata)
    _check_identity(path, identity, document["identity"])
    progress = _read_progress(path, document["progress"])
    _load_weights(path, module, _below(tensors, "model."))
    fused = bool(optimizer.defaults.get("fused"))
    slots = _below(tensors, "optimizer.")
    for name, parameter in module.named_parameters():
        # Adam's step counter stays where it was made; the moments live with their parameter.
        optimizer.state[parameter] = {
            slot: value if slot == "step" and not fused else value.to(parameter.device)
            for slot, value in _below(slots, f"{name}.").items()
            if "." not in slot  # a name can be the start of another one, whose slots then still have a dot
        }
    if average is not None:
        _load_weights(path, average, _below(tensors, "average."))
    return progress


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_weights(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        message = f"its weights are not those of this run ({' '.join(str(error).split()):.200})"
        raise CheckpointError(f"{path}: {message}; begin anew with --overwrite") from error


def _read_progress(path: Path, document: Mapping[str, Any]) -> Progress:
    """Return the progress in the document of a state, each field of its type."""
    try:
        for name, like in asdict(Progress()).items():
            value = document[name]
            good = type(value) is type(like) and (not isinstance(value, int) or 0 <= value <= MOST)
            if name in ("sums", "seconds"):
                good = good and all(type(each) in (int, float) for each in value)
                good = good and (name != "sums" or len(value) == len(like))
            if name == "history":
                good = good and is_history(value)
            if not good:
                raise TypeError(f"{name} is {value!r:.60}")
        found = Progress(**document)
        if [len(found.seconds), len(found.history)] != [found.epoch] * 2:
            raise TypeError(f"{found.epoch} epochs are done, and {len(found.history)} are recorded")
    except (KeyError, TypeError) as error:
        message = f"the state of another version ({describe_error(error)})"
        raise CheckpointError(f"{path}: {message}; begin anew with --overwrite") from error
    return found


def check_resumable(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse the state of another run by its header; `identity` is a part of what `save_state` was given."""
    path = find_state(folder)
    saved = _read_document(path, read_header(path))["identity"]
    _check_identity(path, identity, {name: saved.get(name) for name in identity})


def _read_document(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = parse_json(metadata[KEY])
        return {name: dict(found[name]) for name in ("progress", "identity")}
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not the state of a training run") from error


def _check_identity(path: Path, identity: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    mine = json.loads(json.dumps(dict(identity)))  # lists where it has tuples, as in the file
    for name, old, new in _find_changes(saved, mine):
        change = f"{name} was {old!r} and is now {new!r}"
        hint = "resume with the same, or begin anew with --overwrite"
        raise CheckpointError(f"{path}: of another run ({change}); {hint}")


def _find_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, old and new value of each difference; dictionaries inside are compared field by field."""
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from ((f"{name}: {field}", *values) for field, *values in _find_changes(before, now))
        elif before != now:
            yield name, before, now


def seed_generator(*numbers: int) -> torch.Generator:
    """Return a random generator that depends on the numbers alone: the seed, the purpose and the step."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)
