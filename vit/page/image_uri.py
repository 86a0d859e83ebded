"""Images as data URIs, which are stored in the page itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.images.preprocess import Interpolation, Preprocess

EDGE = 168  # pixels; a card is 140 to 168 wide
TINY = 64  # an image below this many pixels is shown with its pixels, not blurred


def jpeg_uri(pixels: np.ndarray, *, quality: int = 74) -> str:
    """Return an image as the data URI of a JPEG.

    Args:
        pixels: `uint8 [H, W, 3]`.
        quality: of the JPEG, 1 to 95.
    """
    return _uri(Image.fromarray(pixels), "JPEG", quality=quality)


def png_uri(pixels: np.ndarray, *, colors: int | None = None) -> str:
    """Return an image as the data URI of a PNG.

    Args:
        pixels: `uint8 [H, W, 3]`.
        colors: number of colors that the image is reduced to; None keeps all.
    """
    image = Image.fromarray(pixels)
    return _uri(image if colors is None else image.quantize(colors), "PNG")


def file_uri(png: Path) -> str:
    """Return a PNG file as a data URI."""
    return _encode(png.read_bytes(), "png")


def thumbnail(image: Path | np.ndarray) -> str:
    """Return a square JPEG of the image's center as a data URI; empty when the image cannot be read.

    Args:
        image: path, or pixels `uint8 [H, W, 3]`.
    """
    tiny = isinstance(image, np.ndarray) and max(image.shape[:2]) < TINY
    scale: Interpolation = "nearest" if tiny else "lanczos"
    shrink = Preprocess(size=(EDGE, EDGE), resize="crop", interpolation=scale, decode="draft")
    try:
        return jpeg_uri(shrink(image))
    except (ValueError, OSError):
        return ""


def enlarge(pixels: np.ndarray, edge: int = EDGE) -> np.ndarray:
    """Return a small image with repeated pixels, `uint8 [H, W, 3]`.

    Args:
        pixels: `uint8 [H, W, 3]`.
        edge: the least length of the shorter edge, in pixels.
    """
    times = max(1, -(-edge // min(pixels.shape[:2])))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    return _encode(file.getvalue(), kind.lower())


def _encode(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
