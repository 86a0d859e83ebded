"""Which classes are taken for which, by float32 and by a variant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.graph import Array
from export.measure.results import Results, VariantResult

MATRIX_CLASSES = 12  # as many columns as a phone can show
PAIRS = 10


@dataclass(frozen=True)
class Cell:
    """One field of a matrix."""

    count: int
    share: float  # of its row, 0..1
    right: bool
    differs: bool  # from the same field of float32


@dataclass(frozen=True)
class Pair:
    """One class taken for another."""

    truth: str
    taken_for: str
    before: int  # images, by float32
    after: int  # by the variant


def matrix(results: Results, variant: VariantResult) -> list[list[Cell]]:
    """Rows are the true classes, columns the labels given."""
    classes = len(results.labels)
    before, after = (_counts(results, each, classes) for each in (results.variants[0], variant))
    totals = np.maximum(after.sum(axis=1), 1)
    return [
        [
            Cell(int(after[i, j]), float(after[i, j] / totals[i]), i == j, bool(before[i, j] != after[i, j]))
            for j in range(classes)
        ]
        for i in range(classes)
    ]


def pairs(results: Results, variant: VariantResult) -> tuple[list[Pair], int]:
    """The most confused pairs of classes, most images first, and how many more pairs there are."""
    before, after = (_mistakes(results, each) for each in (results.variants[0], variant))
    order = sorted(before | after, key=lambda key: (-(before[key] + after[key]), key))
    named = [
        Pair(results.labels[truth], results.labels[taken], before[truth, taken], after[truth, taken])
        for truth, taken in order
    ]
    return named[:PAIRS], max(0, len(named) - PAIRS)


def short_names(labels: Sequence[str]) -> list[str]:
    """Return heads for narrow columns: the labels if all are short, otherwise class indices."""
    return list(labels) if all(len(label) <= 3 for label in labels) else [str(i) for i in range(len(labels))]


def _counts(results: Results, variant: VariantResult, classes: int) -> Array:
    assert results.targets is not None  # the page has no confusion without them
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (results.targets, variant.logits.argmax(axis=1)), 1)
    return counts


def _mistakes(results: Results, variant: VariantResult) -> Counter[tuple[int, int]]:
    assert results.targets is not None  # the page has no confusion without them
    given = variant.logits.argmax(axis=1)
    return Counter((int(t), int(g)) for t, g in zip(results.targets, given, strict=True) if t != g)
