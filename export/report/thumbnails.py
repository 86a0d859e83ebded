"""Images whose label changed, and images that float32 itself gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.measure.results import Results, VariantResult, softmax
from vit.page.confusion import distinguish
from vit.page.image_uri import thumbnail

SHOWN = 48
MISTAKES = 12


@dataclass(frozen=True)
class Guess:
    """Answer of one model: label, score, and whether it is correct (None: unknown)."""

    variant: str
    label: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Shown:
    """An image, and what one or two models say of it."""

    name: str
    uri: str  # a data URI, empty when the image cannot be read any more
    truth: str | None
    guesses: tuple[Guess, ...]


def changed_images(
    results: Results, variant: VariantResult, *, limit: int = SHOWN
) -> tuple[list[Shown], int]:
    """The first of them, those that float32 was surest of, and how many more there are."""
    entries = results.changed(variant)
    shown = [_shown(results, int(entry["row"]), (results.variants[0], variant)) for entry in entries[:limit]]
    return shown, max(0, len(entries) - limit)


def mistaken_images(results: Results, *, limit: int = MISTAKES) -> tuple[list[Shown], int]:
    """Return the images that float32 itself gets wrong, highest score first, and how many there are.

    Nothing where the classes are not known.
    """
    exact = results.variants[0]
    if results.targets is None:
        return [], 0
    wrong = np.flatnonzero(~results.right(exact))
    scores = softmax(exact.logits[wrong]).max(axis=1)
    order = wrong[np.argsort(-scores, kind="stable")]
    return [_shown(results, int(row), (exact,)) for row in order[:limit]], len(wrong)


def true_labels(results: Results) -> Sequence[str]:
    """Return the names of the true classes; a folder's name that several classes have means any of them."""
    return results.labels if results.images.same_name is not None else distinguish(results.labels)


def _shown(results: Results, row: int, variants: Sequence[VariantResult]) -> Shown:
    labels, item = distinguish(results.labels), results.images[row]
    guesses = []
    for each in variants:
        scores = softmax(each.logits[row : row + 1])[0]
        index = int(scores.argmax())
        right = None if results.targets is None else bool(results.right(each)[row])
        guesses.append(Guess(each.variant, labels[index], float(scores[index]), right))
    return Shown(
        name=item.name if isinstance(item, Path) else results.images.public_name(row),
        uri=thumbnail(item),
        truth=None if results.targets is None else true_labels(results)[int(results.targets[row])],
        guesses=tuple(guesses),
    )
