"""Logits of a data set without training on it, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from runtime.text import format_count
from vit.training.recipe import Recipe


class Batches(Protocol):
    """Data set as the loop sees it (`vit.data.batches.Store`, or features computed beforehand)."""

    def __len__(self) -> int: ...

    def batches(self, groups: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]: ...


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the highest validation accuracy.

    Ties go to the lower validation loss (4 decimals), then to the earlier epoch.
    """
    best = max(history, key=lambda row: (row["val_accuracy"], -round(row.get("val_loss", 0.0), 4)))
    return int(best["epoch"])


def kept_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch whose weights are kept: the best, or the last where no images choose."""
    return best_epoch(history) if "val_accuracy" in history[-1] else len(history)


def describe_kept(history: Sequence[Mapping[str, Any]], validation: int | None) -> str:
    """Say which epoch was kept and what chose it, in words that are the same wherever it is told.

    Args:
        history: one row per epoch, at least one.
        validation: number of validation images; None if it is not known.
    """
    kept, of = kept_epoch(history), f"epoch {kept_epoch(history)} of {len(history)}"
    accuracy = history[kept - 1].get("val_accuracy")
    if accuracy is None:
        return f"kept {of}, the last: there were no validation images to choose one by"
    images = "validation images" if validation is None else format_count(validation, "validation image")
    chose = "the same images chose it, so expect less of others"
    return f"kept {of}: {100 * accuracy:.2f} % of {images} right; {chose}"


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
