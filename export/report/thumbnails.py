"""The images whose label changed, small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.measure.results import Results, VariantResult
from runtime.images.preprocess import Preprocess

SHOWN = 48
EDGE = 168  # pixels; a card is 140 to 168 wide
TINY = 64  # an image below this many pixels is shown with its pixels, not blurred


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
    return [_changed(results, entry, variant) for entry in entries[:limit]], max(0, len(entries) - limit)


def _changed(results: Results, entry: dict[str, Any], variant: VariantResult) -> Changed:
    row = int(entry["row"])
    truth = None if results.targets is None else int(results.targets[row])
    first, second = (
        Guess(name, found["label"], found["score"], None if truth is None else found["index"] == truth)
        for name, found in (("float32", entry["float32"]), (variant.variant, entry[variant.variant]))
    )
    item = results.images[row]
    return Changed(
        name=item.name if isinstance(item, Path) else entry["image"],
        uri=thumbnail(item),
        truth=entry.get("truth"),
        guesses=(first, second),
    )


def thumbnail(image: Path | np.ndarray) -> str:
    """A square JPEG of the image's middle, as a data URI; empty when it cannot be read (any more)."""
    tiny = isinstance(image, np.ndarray) and max(image.shape[:2]) < TINY
    shrink = Preprocess(
        size=(EDGE, EDGE), resize="crop", interpolation="nearest" if tiny else "lanczos", decode="draft"
    )
    try:
        pixels = shrink(image)
    except (ValueError, OSError):
        return ""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=74, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
