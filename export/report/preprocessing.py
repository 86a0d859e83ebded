"""Preprocessing in words, and one image before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

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
    steps += _describe_resize(preprocess)
    steps.append(
        "Hand over red, green and blue as whole numbers from 0 to 255; the model scales them itself."
    )
    return steps


def _describe_resize(preprocess: Preprocess) -> list[str]:
    how, size = RESIZE_FILTERS[preprocess.interpolation], _pixels(preprocess.size)
    to = preprocess.resize_to
    if preprocess.resize == "stretch":
        first = (
            f"Stretch it to {_pixels(to if isinstance(to, tuple) else preprocess.size)}, whatever its shape"
        )
        cut = isinstance(to, tuple) and to != preprocess.size
    elif isinstance(to, int):
        first, cut = f"Scale it until its shorter edge has {to} pixels, keeping its shape", True
    else:
        first = f"Scale it until it just covers {_pixels(to or preprocess.size)}, keeping its shape"
        cut = True
    return [f"{first} ({how}).", *([f"Cut out the middle {size}."] if cut else [])]


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} \N{MULTIPLICATION SIGN} {size[0]} pixels"  # width first, as people say it


def make_example(results: Results) -> dict[str, str] | None:
    """Return one evaluation image before and after, as data URIs; None where the first few cannot be read."""
    for row in range(min(MOST_TRIED, len(results.images))):
        item = results.images[row]
        try:
            with decode_image(item, max_pixels=MAX_PIXELS, exif=False, draft_edge=None) as opened:
                before, size = _shrink(opened), (opened.height, opened.width)
            after = results.preprocess(item)
        except (ValueError, OSError):
            continue
        return {
            "name": results.images.public_name(row),
            "before": _uri(before),
            "before_size": _pixels(size),
            "after": _uri(after),
            "after_size": _pixels((after.shape[0], after.shape[1])),
        }
    return None


def _shrink(image: Image.Image) -> np.ndarray:
    small = image.copy()
    small.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
    return np.asarray(small)


def _uri(pixels: np.ndarray) -> str:
    if max(pixels.shape[:2]) <= TINY:
        return png_uri(enlarge(pixels))
    return jpeg_uri(pixels, quality=88)
