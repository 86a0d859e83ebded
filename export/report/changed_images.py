"""Images whose label changed, and images that float32 itself gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.report.section import Results, Section, VariantResult
from vit.page.confusion import distinct
from vit.page.image_uri import thumbnail

MOST_CHANGED = 48
MOST_MISTAKES = 12


@dataclass(frozen=True)
class Guess:
    """Answer of one model: label, score, and whether it is correct (None: unknown)."""

    variant: str
    label: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Card:
    """An image, and what one or two models say of it."""

    name: str
    uri: str  # a data URI, empty when the image cannot be read any more
    truth: str | None
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class ChangedImages(Section):
    """Images with another label than float32's by variant, and the mistakes of float32."""

    template = "changed_images.j2"

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return every changed image with both answers, in the fields of each model."""
        if not results.labels:
            return {}
        models = {
            each.variant: {"changed": [_describe(results, each, row) for row in results.changed(each)]}
            for each in results.variants[1:]
        }
        return {"models": models}

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the cards of the images that are shown, and how many there are."""
        exact = results.variants[0]
        mistakes = list_mistakes(results)
        changed = [(each, results.changed(each)) for each in results.variants[1:] if results.labels]
        return {
            "variants": [
                {
                    "title": each.title,
                    "count": len(rows),
                    "cards": [make_card(results, row, (exact, each)) for row in rows[:MOST_CHANGED]],
                }
                for each, rows in changed
            ],
            "mistakes": len(mistakes),
            "mistake_cards": [make_card(results, row, (exact,)) for row in mistakes[:MOST_MISTAKES]],
        }


def list_mistakes(results: Results) -> list[int]:
    """Return the images that float32 gets wrong, highest score first; none where classes are not known."""
    if results.targets is None:
        return []
    wrong = np.flatnonzero(~results.right(results.variants[0]))
    scores = results.variants[0].answers[1][wrong]
    return [int(row) for row in wrong[np.argsort(-scores, kind="stable")]]


def name_true_classes(results: Results) -> Sequence[str]:
    """Return the names of the true classes; a folder's name that several classes have means any of them."""
    return results.labels if results.images.same_name is not None else distinct(results.labels)


def make_card(results: Results, row: int, variants: Sequence[VariantResult]) -> Card:
    """Return one image with the answers of some variants."""
    labels, item = distinct(results.labels), results.images[row]
    guesses = []
    for each in variants:
        classes, scores = each.answers
        right = None if results.targets is None else bool(results.right(each)[row])
        guesses.append(Guess(each.variant, labels[classes[row]], float(scores[row]), right))
    return Card(
        name=item.name if isinstance(item, Path) else results.images.public_name(row),
        uri=thumbnail(item),
        truth=None if results.targets is None else name_true_classes(results)[int(results.targets[row])],
        guesses=tuple(guesses),
    )


def _describe(results: Results, variant: VariantResult, index: int) -> dict[str, Any]:
    row = int(index)
    entry: dict[str, Any] = {"image": results.images.public_name(row), "row": row}
    for each in (results.variants[0], variant):
        index, score = (int(each.answers[0][row]), float(each.answers[1][row]))
        entry[each.variant] = {"label": results.labels[index], "index": index, "score": round(score, 4)}
    if results.targets is not None:
        entry["truth"] = results.labels[int(results.targets[row])]
    return entry
