"""Accuracy of each class, all of them where they are few, else the worst; and which is taken for which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration.measure.label_sets import measure_f1
from export.report.changed_images import name_true_classes
from export.report.section import Results, Section
from vit.page.confusion import MATRIX_CLASSES, are_short, confusion_matrix, rank_confusions

MOST_CLASSES = 20  # of more, only the worst are shown
WORST = 10


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of the evaluation images."""

    index: int
    label: str
    images: int
    share: Mapping[str, float]  # by variant, per cent: images with the right label; F1 of several labels


@dataclass(frozen=True)
class Classes(Section):
    """Top-1 by class and the confusion of classes, where the classes of the images are known."""

    template = "classes.j2"

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return every class that has an image."""
        classes = [
            {
                **{name: value for name, value in asdict(each).items() if name != "share"},
                "f1" if results.images.several else "top1": {n: round(x, 2) for n, x in each.share.items()},
            }
            for each in measure_classes(results)
        ]
        return {"classes": classes} if classes else {}

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the classes that are shown, facts on all of them, and what shows the confusion."""
        if results.targets is None:
            return None
        found, labels = measure_classes(results), name_true_classes(results)
        if not found:  # label sets, all of them empty
            return None
        images = [each.images for each in found]
        shown = found if len(found) <= MOST_CLASSES else sorted(found, key=_rank)[:WORST]
        rows = [(labels[each.index], each.images, each.share) for each in shown]
        counts = {"classes": len(found), "fewest": min(images), "most": max(images)}
        return {"rows": rows, **counts, **_confuse(results)}


def measure_classes(results: Results) -> list[ClassResult]:
    """Return the top-1, of label sets the F1, of every class that has an image, by class index."""
    targets = results.targets
    if targets is None:  # there may be no logits
        return []
    several = results.images.several
    rights = {
        each.variant: each.answers[0] if several else results.mark_right(each) for each in results.variants
    }
    return [
        ClassResult(
            index=int(index),
            label=results.labels[int(index)],
            images=int(images.sum()),
            share={
                name: 100 * (measure_f1(right[:, index], images) if several else float(right[images].mean()))
                for name, right in rights.items()
            },
        )
        for index in np.unique(np.nonzero(targets)[1] if several else targets)
        for images in [targets[:, index] if several else targets == index]
    ]


def _rank(each: ClassResult) -> tuple[float, float, int, int]:
    """Lowest top-1 of the last variant first, then the largest loss, then the most images."""
    share = list(each.share.values())
    return share[-1], share[-1] - share[0], -each.images, each.index


def _confuse(results: Results) -> dict[str, Any]:
    """Return a matrix per variant where it fits on a phone, else the most confused pairs of classes."""
    targets, labels = results.targets, results.labels
    assert targets is not None  # the caller has checked
    if results.images.several:  # none is taken for another
        return {}
    answers = [results.settle_answers(each) for each in results.variants]
    if len(labels) > MATRIX_CLASSES:
        pairs, more = rank_confusions(targets, answers, labels)
        return {"matrices": [], "pairs": pairs, "more": more}
    matrices = [
        (each.title, confusion_matrix(targets, classes, len(labels), answers[0]))
        for each, classes in zip(results.variants, answers, strict=True)
    ]
    return {"matrices": matrices, "short": are_short(labels)}
