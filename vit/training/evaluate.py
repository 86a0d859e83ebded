"""Logits, loss and accuracy of a data set without training on it, and the choice of the best epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.text import format_count


class Batches(Protocol):
    """Data set in batches: `vit.data.batches.Store`, or features computed beforehand."""

    def __len__(self) -> int: ...

    def batches(self, groups: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield for each group of indices the indices, the inputs `[n, …]` and which are good, bool `[n]`."""


def split_batches(indices: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Yield `batch` of the indices at a time."""
    return (indices[start : start + batch] for start in range(0, len(indices), batch))


@torch.no_grad()
def predict_logits(
    module: nn.Module, source: Batches, indices: np.ndarray, device: torch.device, batch: int = 256
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield `indices, logits [n, classes], good [n]` in batches, in evaluation mode.

    Args:
        module: maps a batch of `source` to logits.
        source: the data set.
        indices: int64, the images of `source` to predict.
        device: where `module` is.
        batch: number of images per batch.
    """
    training = module.training
    module.eval()
    for group, inputs, good in source.batches(split_batches(indices, batch)):
        yield group, module(inputs.to(device)), good.to(device)
    module.train(training)


def measure_loss(
    module: nn.Module, source: Batches, targets: np.ndarray, indices: np.ndarray, device: torch.device
) -> Tensor:
    """Return the sums over the readable images at `indices`: loss, correct labels, number; float64 `[3]`.

    `module` maps a batch of `source` to logits; `targets`, int64, are the classes of all its images.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for group, logits, good in predict_logits(module, source, indices, device):
        hard = torch.from_numpy(targets[group]).to(device)
        losses = F.cross_entropy(logits.float(), hard, reduction="none")
        correct = count_correct(logits, hard, good)
        sums += torch.stack([(losses * good).sum(), correct, good.sum().float()]).double()
    return sums


def count_correct(logits: Tensor, targets: Tensor, good: Tensor) -> Tensor:
    """Count the `good` images (bool `[n]`) whose largest logit `[n, classes]` is their class's; float32.

    Of several labels, `targets` bool `[n, classes]`, those whose positive logits are their labels'.
    """
    if targets.ndim == 2:
        return (((logits > 0) == targets).all(-1) * good).sum().float()
    return ((logits.argmax(-1) == targets) * good).sum().float()


def mean_metrics(part: str, sums: Sequence[float]) -> dict[str, float]:
    """Return loss and accuracy of "train", "val" or "test" for a row of the history, from `measure_loss`."""
    loss, correct, count = sums
    return {f"{part}_loss": loss / max(count, 1), f"{part}_accuracy": correct / max(count, 1)}


# --- Which epoch was the best ---


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the highest validation accuracy; with several labels, mAP.

    Ties go to the lower validation loss (4 decimals), then to the earlier epoch.
    """
    best = max(history, key=lambda row: (_choosing(row), -round(row.get("val_loss", 0.0), 4)))
    return int(best["epoch"])


def _choosing(row: Mapping[str, Any]) -> float:
    """Return the figure of an epoch that chooses the best one."""
    return float(row.get("val_map", row["val_accuracy"]))


def choose_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch whose weights are kept: the best; the last without validation images."""
    return best_epoch(history) if "val_accuracy" in history[-1] else len(history)


def describe_kept(history: Sequence[Mapping[str, Any]], validation: int | None) -> str:
    """Say which epoch was kept and what chose it: how many `validation` images; None if that is not known."""
    kept = choose_epoch(history)
    of = f"epoch {kept} of {len(history)}"
    row = history[kept - 1]
    if "val_accuracy" not in row:
        return f"kept {of}, the last: there were no validation images to choose one by"
    images = "validation images" if validation is None else format_count(validation, "validation image")
    chose = "the same images chose it, so expect less of others"
    share = f"{100 * _choosing(row):.2f} %"
    figure = f"mAP {share} on {images}" if "val_map" in row else f"{share} of {images} right"
    return f"kept {of}: {figure}; {chose}"


def stop_early(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Return whether training ends early: none of the last `patience` (0: any number) epochs was the best."""
    return bool(patience) and len(history) - best_epoch(history) >= patience
