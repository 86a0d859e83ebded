"""Accuracy of each class, all of them where they are few, else the worst; and which is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.report.changed_images import name_true_classes
from export.report.number_formats import percent
from export.report.section import Results, Section
from vit.page.confusion import MATRIX_CLASSES, are_short, confused_pairs, confusion_matrix

MOST_CLASSES = 20  # of more, only the worst are shown
WORST = 10


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of the evaluation images."""

    index: int
    label: str
    images: int
    right: Mapping[str, int]  # images with the right label, by variant

    def top1(self, variant: str) -> float:
        """Return the images with the right label in per cent."""
        return 100 * self.right[variant] / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "index": self.index,
            "label": self.label,
            "images": self.images,
            "top1": {name: round(self.top1(name), 2) for name in self.right},
        }


@dataclass(frozen=True)
class Classes(Section):
    """Top-1 by class and the confusion of classes, where the classes of the images are known."""

    template = "classes.j2"

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return every class that has an image."""
        classes = [each.to_dict() for each in count_classes(results)]
        return {"classes": classes} if classes else {}

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the rows of the table with its sentences, and what shows the confusion."""
        if results.targets is None:
            return None
        found, labels = count_classes(results), name_true_classes(results)
        names = [each.variant for each in results.variants]
        shown, lead = found, "Top-1 of the images of each class"
        if len(found) > MOST_CLASSES:
            shown = sorted(found, key=lambda each: _rank(each, names))[:WORST]
            lead += f": the {WORST} worst of {len(found)}"
        return {
            "lead": f"{lead}.",
            "rows": [
                (labels[each.index], each.images, [percent(each.top1(name), 1) for name in names])
                for each in shown
            ],
            "note": _explain(results, found, len(shown)),
            **_confuse(results),
        }


def count_classes(results: Results) -> list[ClassResult]:
    """Count what each variant gets right, for every class that has an image, by class index."""
    targets = results.targets
    if targets is None:  # there may be no logits
        return []
    hits = {each.variant: results.right(each) for each in results.variants}
    return [
        ClassResult(
            index=int(index),
            label=results.labels[int(index)],
            images=int((targets == index).sum()),
            right={name: int(right[targets == index].sum()) for name, right in hits.items()},
        )
        for index in np.unique(targets)
    ]


def _rank(each: ClassResult, names: Sequence[str]) -> tuple[float, float, int, int]:
    """Lowest top-1 of the last variant first, then the largest loss, then the most images."""
    last = each.top1(names[-1])
    return last, last - each.top1(names[0]), -each.images, each.index


def _explain(results: Results, found: Sequence[ClassResult], shown: int) -> str:
    """Say what is not shown, which classes have no image, and what so few images are worth."""
    fewest, most = (pick(each.images for each in found) for pick in (min, max))
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    worth = f"{'' if fewest == most else 'up to '}{100 / fewest:.3g} points"
    parts = [f"Images per class: {each}; one mistake is {worth}."]
    if more := len(found) - shown:
        parts.append(f"{more:,} more classes are not shown; report.json has them all.")
    if missing := len(results.labels) - len(found):
        parts.append(f"{missing:,} of the model's {len(results.labels):,} classes have no image here.")
    return " ".join(parts)


def _confuse(results: Results) -> dict[str, Any]:
    """Return a matrix per variant where it fits on a phone, else the most confused pairs of classes."""
    targets, labels = results.targets, results.labels
    assert targets is not None  # the caller has checked
    answers = [results.answers(each) for each in results.variants]
    if len(labels) > MATRIX_CLASSES:
        pairs, more = confused_pairs(targets, answers, labels)
        return {"matrices": [], "pairs": pairs, "more": more}
    matrices = [
        (each.title, confusion_matrix(targets, classes, len(labels), answers[0]))
        for each, classes in zip(results.variants, answers, strict=True)
    ]
    return {"matrices": matrices, "short": are_short(labels)}
