"""Preprocessing in words, and one image before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.report.section import Results, Section
from runtime.images.decode import decode_image
from runtime.images.preprocess import MAX_PIXELS, Preprocess
from vit.page.image_uri import TINY, enlarge, jpeg_uri, png_uri

MOST_TRIED = 20  # images, until one can be read
SHOWN_EDGE = 400  # pixels of the longer edge of the image before preprocessing
RESIZE_FILTERS = {
    "nearest": "each pixel is taken from the nearest one",
    "box": "each pixel is the mean of those that it covers",
    "bilinear": "bilinear filter, widened by the factor that the image shrinks",
    "hamming": "Hamming filter, widened by the factor that the image shrinks",
    "bicubic": "bicubic filter, widened by the factor that the image shrinks",
    "lanczos": "Lanczos filter, widened by the factor that the image shrinks",
}


@dataclass(frozen=True)
class Preprocessing(Section):
    """Steps from an image to the input of the model."""

    template = "preprocessing.j2"

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the steps as sentences, and an example."""
        return {"steps": describe_steps(results.preprocess), "example": make_example(results)}


def describe_steps(preprocess: Preprocess) -> list[str]:
    """Return the steps from a file to the model's input, one sentence each."""
    steps = []
    if preprocess.exif:
        steps.append("Turn the image the way its EXIF orientation says.")
    if preprocess.decode == "draft":
        steps.append(
            "Decode a large JPEG at 1/2, 1/4 or 1/8 of its size, as long as both edges stay at least twice "
            "as long as the next step needs."
        )
    size, to, cut = preprocess.size, preprocess.resize_to, True
    if preprocess.resize == "stretch":
        target = to if isinstance(to, tuple) else size
        step, cut = f"Stretch it to {_pixels(target)}, whatever its shape", target != size
    elif isinstance(to, int):
        step = f"Scale it until its shorter edge has {to} pixels, keeping its shape"
    else:
        step = f"Scale it until it just covers {_pixels(to or size)}, keeping its shape"
    steps.append(f"{step} ({RESIZE_FILTERS[preprocess.interpolation]}).")
    if cut:
        steps.append(f"Cut out the middle {_pixels(size)}.")
    return [
        *steps,
        "Hand over red, green and blue as whole numbers from 0 to 255; the model scales them itself.",
    ]


def _pixels(size: Sequence[int]) -> str:
    return f"{size[1]} \N{MULTIPLICATION SIGN} {size[0]} pixels"  # width first, as people say it


def make_example(results: Results) -> dict[str, str] | None:
    """Return one evaluation image before and after, as data URIs; None where the first few cannot be read."""
    for row in range(min(MOST_TRIED, len(results.images))):
        item = results.images[row]
        try:
            with decode_image(item, max_pixels=MAX_PIXELS, exif=False, draft_edge=None) as opened:
                before, size = opened.copy(), (opened.height, opened.width)
            before.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
            after = results.preprocess(item)
        except (ValueError, OSError):
            continue
        return {
            "name": results.images.public_name(row),
            "before": _uri(np.asarray(before)),
            "before_size": _pixels(size),
            "after": _uri(after),
            "after_size": _pixels(after.shape[:2]),
        }
    return None


def _uri(pixels: np.ndarray) -> str:
    return png_uri(enlarge(pixels)) if max(pixels.shape[:2]) <= TINY else jpeg_uri(pixels, quality=88)
