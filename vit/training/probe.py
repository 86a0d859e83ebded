"""The features of a frozen backbone, computed once: what makes a linear probe a matter of seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vit.data.batches import Store
from vit.document import CheckpointError
from vit.model import ViT
from vit.tensors import read_tensors, write_tensors
from vit.training.recipe import RecipeError


class Features:
    """`float32 [n, width]` batches of class-token features, in place of the images of `store`.

    Args:
        cache: a folder where features are kept under a name that depends on the backbone (weights and
            config), the preprocessing and the images (path, size and time of change); None keeps nothing.
        progress: called with the number of images done so far.
    """

    def __init__(
        self,
        model: ViT,
        store: Store,
        device: torch.device,
        cache: Path | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        file = cache / f"{fingerprint(model, store)}.safetensors" if cache else None
        found = read_features(file) if file else None
        if found is None:
            found = compute_features(model, store, device, progress)
            if file:
                write_tensors(file, found, {})
        self.features, self.good = found["features"], found["good"].bool()

    def __len__(self) -> int:
        return len(self.features)

    def batches(self, groups: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        for group in groups:
            yield group, self.features[group], self.good[group]


class Probe(nn.Module):
    """A linear head on standardized features, which learns faster and generalizes better than on raw ones.

    Args:
        head: what it starts from; `folded` gives the head for raw features back.
        features: `[n, width]`, whose mean and deviation are taken.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Module, features: Tensor) -> None:
        super().__init__()
        if not isinstance(head, nn.Linear):
            raise RecipeError("a probe trains one linear layer, and this head has more; fine-tune instead")
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0).clamp(min=1e-6))
        self.head = nn.Linear(head.in_features, head.out_features)
        with torch.no_grad():
            self.head.weight.copy_(head.weight.cpu() * self.std)
            self.head.bias.copy_(head.bias.cpu() + head.weight.cpu() @ self.mean)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head((features - self.mean) / self.std)
        return logits


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head for raw features out of a probe's state: exact, since both steps are linear."""
    weight = weights["head.weight"] / weights["std"]
    return {"weight": weight, "bias": weights["head.bias"] - weight @ weights["mean"]}


@torch.no_grad()
def compute_features(
    model: ViT, store: Store, device: torch.device, progress: Callable[[int], object]
) -> dict[str, Tensor]:
    model = model.to(device).eval()
    features, good = [], []
    everything = np.arange(len(store))
    groups = (everything[start : start + 32] for start in range(0, len(store), 32))
    for group, pixels, fine in store.batches(groups):
        features.append(model.features(pixels.to(device)).float().cpu())
        good.append(fine)
        progress(int(group[-1]) + 1)
    return {"features": torch.cat(features), "good": torch.cat(good).to(torch.uint8)}


def read_features(file: Path) -> dict[str, Tensor] | None:
    try:
        return read_tensors(file)[0]
    except CheckpointError:  # not there, or cut off: computed again
        return None


def fingerprint(model: ViT, store: Store) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    # The config too: heads, activation and epsilon are in no weight.
    backbone = replace(model.config, classes=0, representation=None)
    digest.update(repr((backbone, store.preprocess)).encode())
    for item in store.images.items:
        if isinstance(item, Path):
            digest.update(f"{item} {stamp(item)}\n".encode(errors="surrogateescape"))
        else:
            digest.update(np.ascontiguousarray(item).tobytes())
    return digest.hexdigest()[:16]


def stamp(file: Path) -> str:
    """Return size and time of change of a file; empty where it cannot be read, as `Store` tells."""
    try:
        stat = file.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"
