"""Several labels per image: figures of a model, and the threshold of each label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.training.evaluate import Batches, predict_logits

DEFAULT = 0.5  # threshold of a label that no held-out image has
_DIGITS = 6  # of a threshold
MOST_NAMED = 5  # labels in one sentence


def predict_all(
    module: nn.Module, source: Batches, classes: int, indices: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return logits [N, classes] and which images can be read [N], both float32; 0 but at `indices`.

    So the sum over several processes, each with its own indices, is that of all images.
    """
    logits, good = torch.zeros(len(source), classes, device=device), torch.zeros(len(source), device=device)
    for group, found, fine in predict_logits(module, source, indices, device):
        logits[group], good[group] = found.float(), fine.float()
    return logits, good


def measure_sets(
    part: str, logits: Tensor, good: Tensor, targets: np.ndarray, thresholds: Sequence[float] | None = None
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Return the figures of "val" or "test" for a row of the history, and the thresholds of the labels.

    The figures are the loss, the mean average precision over the labels that an image has (`map`), the F1 of
    all labels together, and the share of images with exactly their labels (`accuracy`).

    Args:
        part: "val" or "test", before the name of each figure.
        logits: float32 [N, classes].
        good: the images that count, float32 [N].
        targets: the labels of the images, bool [N, classes].
        thresholds: one per label; None chooses them on these images.
    """
    from sklearn.metrics import average_precision_score

    kept = good.cpu().numpy() > 0
    rows, truth = logits.cpu()[torch.from_numpy(kept)], targets[kept]
    scores = rows.double().sigmoid().numpy()
    if thresholds is None:
        thresholds = tuple(map(choose_threshold, scores.T, truth.T))
    found = scores >= np.asarray(thresholds)
    hits, total = (found & truth).sum(), found.sum() + truth.sum()
    ranked = [average_precision_score(*each) for each in zip(truth.T, scores.T, strict=True) if each[0].any()]
    loss = F.binary_cross_entropy_with_logits(rows, torch.from_numpy(truth).float())
    return {
        f"{part}_loss": float(loss) if len(rows) else 0.0,
        f"{part}_map": float(np.mean(ranked)) if ranked else 0.0,
        f"{part}_f1": float(2 * hits / total) if total else 1.0,
        f"{part}_accuracy": float((found == truth).all(axis=1).mean()) if len(rows) else 0.0,
    }, tuple(thresholds)


def choose_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold with the highest F1: between two scores, of several that nearest to 0.5.

    Args:
        scores: of one label, float [N], 0 to 1.
        truth: which images have it, bool [N]; without any it is 0.5.
    """
    if not truth.any():
        return DEFAULT
    cuts, place = np.unique(-scores, return_inverse=True)  # highest first
    hits, count = (np.bincount(place, weights=each).cumsum() for each in (truth, np.ones(len(truth))))
    between = -(cuts + np.append(cuts[1:], 0.0)) / 2
    f1 = 2 * hits / (count + truth.sum())
    best = between[f1 >= f1.max() - 1e-12]
    return float(f"{best[np.abs(best - DEFAULT).argmin()]:.{_DIGITS}g}")


def describe_thresholds(
    thresholds: Sequence[float], labels: Sequence[str], validation: np.ndarray | None
) -> str:
    """Return a sentence about the thresholds; `validation` has the labels of the images that chose them."""
    if validation is None:
        return f"thresholds: {DEFAULT} for each label: no images were held out to choose them (holdout)"
    some = [f"{label} {each:g}" for label, each in zip(labels, thresholds, strict=True)]
    more = len(some) - MOST_NAMED
    named = ", ".join(some[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    missing = [label for label, found in zip(labels, validation.T, strict=True) if not found.any()]
    of = f"; no such image has {', '.join(missing[:MOST_NAMED])}, so {DEFAULT} there" if missing else ""
    return f"thresholds: {named}; chosen by F1 on {len(validation)} held-out images{of}"
