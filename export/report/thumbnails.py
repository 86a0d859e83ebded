"""The images whose label changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.measure.results import Results, VariantResult
from vit.page.confusion import distinct
from vit.page.images import thumbnail

SHOWN = 48


@dataclass(frozen=True)
class Guess:
    """Answer of one model: label, score, and whether it is correct (None: unknown)."""

    variant: str
    label: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Changed:
    """An image to which float32 and a variant give different labels."""

    name: str
    uri: str  # a data URI, empty when the image cannot be read any more
    truth: str | None
    guesses: tuple[Guess, Guess]


def changed_images(
    results: Results, variant: VariantResult, *, limit: int = SHOWN
) -> tuple[list[Changed], int]:
    """The first of them, those that float32 was surest of, and how many more there are."""
    entries = results.changed(variant)
    labels = distinct(results.labels)
    shown = [_changed(results, entry, variant, labels) for entry in entries[:limit]]
    return shown, max(0, len(entries) - limit)


def _changed(
    results: Results, entry: dict[str, Any], variant: VariantResult, labels: Sequence[str]
) -> Changed:
    row = int(entry["row"])
    truth = None if results.targets is None else int(results.targets[row])
    first, second = (
        Guess(
            name, labels[found["index"]], found["score"], None if truth is None else found["index"] == truth
        )
        for name, found in (("float32", entry["float32"]), (variant.variant, entry[variant.variant]))
    )
    item = results.images[row]
    return Changed(
        name=item.name if isinstance(item, Path) else entry["image"],
        uri=thumbnail(item),
        truth=None if truth is None else labels[truth],
        guesses=(first, second),
    )
