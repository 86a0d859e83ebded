"""Which classes are taken for which, by float32 and by a variant."""

from __future__ import annotations

from typing import Any

from export.measure.results import Results
from export.report.figures import name_of
from vit.page.confusion import MATRIX_CLASSES, are_short, confusion_matrix, rank_confusions


def confusion_section(results: Results) -> dict[str, Any] | None:
    """Return a matrix per variant where it fits on a phone, else the most confused pairs of classes.

    None where the classes are unknown.
    """
    targets, variants = results.targets, results.variants
    if targets is None:
        return None
    given = [results.given(each) for each in variants]
    if len(results.labels) <= MATRIX_CLASSES:
        return {
            "matrices": [
                (name_of(each), confusion_matrix(targets, labels, len(results.labels), given[0]))
                for each, labels in zip(variants, given, strict=True)
            ],
            "labels": results.labels,
            "short": are_short(results.labels),
        }
    found, more = rank_confusions(targets, given, results.labels)
    return {"pairs": found, "more": more, "names": [name_of(each) for each in variants]}
