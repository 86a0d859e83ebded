"""Images whose label changed, and images that float32 itself gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from export.report.section import Results, Section, VariantResult
from vit.page.confusion import distinguish_labels
from vit.page.image_uri import thumbnail

MOST_CHANGED = 48
MOST_MISTAKES = 12


@dataclass(frozen=True)
class ChangedImages(Section):
    """Images with another label than float32's by variant, and the mistakes of float32."""

    template = "changed_images.j2"

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return every changed image with both answers, in the fields of each model."""
        if not results.labels:
            return {}
        models = {}
        for each in results.variants[1:]:
            rows = results.find_changed(each).tolist()
            models[each.variant] = {"changed": [_describe(results, each, row) for row in rows]}
        return {"models": models}

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the cards of the images that are shown, and how many there are."""
        (exact, *others), mistakes, variants = results.variants, list_mistakes(results), []
        for each in others if results.labels else ():
            rows = results.find_changed(each)
            cards = [make_image_card(results, row, (exact, each)) for row in rows[:MOST_CHANGED]]
            variants.append({"title": each.title, "count": len(rows), "cards": cards})
        cards = [make_image_card(results, row, (exact,)) for row in mistakes[:MOST_MISTAKES]]
        return {"variants": variants, "mistakes": len(mistakes), "mistake_cards": cards}


def list_mistakes(results: Results) -> list[int]:
    """Return the images that float32 gets wrong, highest score first; none where classes are not known."""
    if results.targets is None:
        return []
    wrong = np.flatnonzero(~results.mark_right(results.variants[0]))
    scores = results.variants[0].answers[1][wrong]
    return list(map(int, wrong[np.argsort(-scores, kind="stable")]))


def name_true_classes(results: Results) -> Sequence[str]:
    """Return the names of the true classes; a folder's name that several classes have means any of them."""
    return results.labels if results.images.same_name is not None else distinguish_labels(results.labels)


def make_image_card(results: Results, row: int, variants: Sequence[VariantResult]) -> dict[str, Any]:
    """Return one image with the answers of some variants, for the macro `card`."""
    labels, item = distinguish_labels(results.labels), results.images[row]
    targets, truth = results.targets, name_true_classes(results)
    return {
        "name": item.name if isinstance(item, Path) else results.images.public_name(row),
        "uri": thumbnail(item),  # empty when the image cannot be read any more
        "truth": None if targets is None else results.name(targets[row], truth),
        "guesses": [
            {
                "variant": each.variant,
                "label": results.name(each.answers[0][row], labels),
                "score": float(each.answers[1][row]),
                "right": None if targets is None else bool(results.mark_right(each)[row]),
            }
            for each in variants
        ],
    }


def _describe(results: Results, variant: VariantResult, row: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": results.images.public_name(row), "row": row}
    for each in (results.variants[0], variant):
        given, score = (rows[row] for rows in each.answers)
        entry[each.variant] = {**_describe_answer(results, given), "score": round(float(score), 4)}
    if results.targets is not None:
        entry["truth"] = next(iter(_describe_answer(results, results.targets[row]).values()))
    return entry


def _describe_answer(results: Results, given: Array) -> dict[str, Any]:
    """Return label and index of a class, or the labels of a set."""
    if given.ndim == 0:
        return {"label": results.labels[int(given)], "index": int(given)}
    return {"labels": [results.labels[index] for index in np.flatnonzero(given)]}
