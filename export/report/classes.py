"""Accuracy of each class on the page: all of them where they are few, else the worst ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.measure.classes import ClassResult
from export.measure.results import Results
from export.report.figures import name_of
from export.report.thumbnails import true_labels

ALL_SHOWN = 20  # classes; of more, only the worst are shown
WORST = 10


def class_section(results: Results) -> dict[str, Any] | None:
    """Return what the template shows of the classes; None where they are unknown."""
    found, labels = results.classes(), true_labels(results)
    if not found:
        return None
    names = [each.variant for each in results.variants]
    shown = found if len(found) <= ALL_SHOWN else sorted(found, key=lambda each: _worst_first(each, names))
    shown = shown[: len(found) if len(found) <= ALL_SHOWN else WORST]
    return {
        "columns": [name_of(each) for each in results.variants],
        "rows": [
            (labels[each.index], each.images, [f"{100 * each.top1(name):.1f} %" for name in names])
            for each in shown
        ],
        "lead": _lead(found, len(shown)),
        "note": _note(results, found, len(shown)),
    }


def _worst_first(each: ClassResult, names: Sequence[str]) -> tuple[float, float, int, int]:
    """Lowest top-1 of the last variant first, then the largest loss, then the most images."""
    last = each.top1(names[-1])
    return last, last - each.top1(names[0]), -each.images, each.index


def _lead(found: list[ClassResult], shown: int) -> str:
    if shown == len(found):
        return "Top-1 of the images of each class."
    return f"Top-1 of the images of each class: the {shown} worst of {len(found)}."


def _note(results: Results, found: list[ClassResult], shown: int) -> str:
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
