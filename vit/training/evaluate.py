"""Logits of a data set without training on it, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vit.training.recipe import Recipe


class Batches(Protocol):
    """Data set as the loop sees it (`vit.data.batches.Store`, or features computed beforehand)."""

    def __len__(self) -> int: ...

    def batches(self, groups: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]: ...


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the highest validation accuracy.

    Ties go to the lower validation loss (4 decimals), then to the earlier epoch.
    """
    best = max(history, key=lambda row: (row["val_accuracy"], -round(row["val_loss"], 4)))
    return int(best["epoch"])


def no_better(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether training ends early: the last `early_stop` epochs were no better.

    Better is a higher accuracy; for a probe a lower validation loss (4 decimals), which rises long before the
    accuracy moves.
    """
    best = best_epoch(history)
    if recipe.freeze:
        best = int(min(history, key=lambda row: round(row["val_loss"], 4))["epoch"])
    return bool(recipe.early_stop) and len(history) - best >= recipe.early_stop


@torch.no_grad()
def predict(
    module: nn.Module, source: Batches, indices: np.ndarray, device: torch.device, batch: int = 256
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield `indices, logits [n, classes], good [n]` in batches, in evaluation mode."""
    training = module.training
    module.eval()
    groups = (indices[start : start + batch] for start in range(0, len(indices), batch))
    for group, inputs, good in source.batches(groups):
        yield group, module(inputs.to(device)), good.to(device)
    module.train(training)
