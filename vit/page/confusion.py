"""Confusion of classes: a matrix where it fits on a phone, else the most frequent pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MATRIX_CLASSES = 12  # as many columns as a phone can show
PAIRS = 10
SHORT = 3  # letters of a name that fits above a narrow column


@dataclass(frozen=True)
class Cell:
    """One field of a matrix."""

    count: int
    share: float  # of its row, 0..1
    right: bool
    differs: bool  # from the same field of the reference


@dataclass(frozen=True)
class Pair:
    """One class taken for another."""

    truth: str
    taken_for: str
    counts: tuple[int, ...]  # images, by model


def confusion_matrix(
    targets: np.ndarray, given: np.ndarray, classes: int, reference: np.ndarray | None = None
) -> list[list[Cell]]:
    """Count how often each class gets each label.

    Args:
        targets: true classes, int64 [images].
        given: labels of the model, int64 [images].
        classes: number of classes.
        reference: labels of another model, whose counts are compared with.

    Returns:
        Rows are the true classes, columns the labels given.
    """
    after = count_labels(targets, given, classes)
    before = after if reference is None else count_labels(targets, reference, classes)
    totals = np.maximum(after.sum(axis=1), 1)
    return [
        [
            Cell(int(after[i, j]), float(after[i, j] / totals[i]), i == j, bool(before[i, j] != after[i, j]))
            for j in range(classes)
        ]
        for i in range(classes)
    ]


def rank_confusions(
    targets: np.ndarray, given: Sequence[np.ndarray], labels: Sequence[str]
) -> tuple[list[Pair], int]:
    """Return the most confused pairs of classes, most images first, and how many more there are.

    Args:
        targets: true classes, int64 [images].
        given: labels of each model, int64 [images].
        labels: names by class index.
    """
    found = [_mistakes(targets, each) for each in given]
    keys = set().union(*found)
    order = sorted(keys, key=lambda key: (-sum(each[key] for each in found), key))
    labels = distinguish_labels(labels)
    named = [Pair(labels[t], labels[g], tuple(each[t, g] for each in found)) for t, g in order]
    return named[:PAIRS], max(0, len(named) - PAIRS)


def distinguish_labels(labels: Sequence[str]) -> list[str]:
    """Return the names, with the class index behind those that several classes have.

    Args:
        labels: names by class index.
    """
    often = Counter(labels)
    return [f"{label} ({index})" if often[label] > 1 else label for index, label in enumerate(labels)]


def are_short(labels: Sequence[str]) -> bool:
    """Return whether the names fit side by side above narrow columns.

    Args:
        labels: names by class index.
    """
    return all(len(label) <= SHORT for label in labels)


def count_labels(targets: np.ndarray, given: np.ndarray, classes: int) -> np.ndarray:
    """Return how often each class (row) gets each label (column), int64 `[classes, classes]`."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (targets, given), 1)
    return counts


def _mistakes(targets: np.ndarray, given: np.ndarray) -> Counter[tuple[int, int]]:
    return Counter((int(t), int(g)) for t, g in zip(targets, given, strict=True) if t != g)
