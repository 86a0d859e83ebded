"""Conversion of Pillow's modes to RGB: palettes, transparency, 16 bits, Lab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import ImageError

if TYPE_CHECKING:
    import numpy.typing as npt  # slow to import, and the runtime has to start fast


WHITE_16 = 65535
DEEP_COLOR = "it has 16 bits per color, white_level is for gray images; convert it to gray, or to 8 bits"


def as_rgb(image: Image.Image, white_level: int = WHITE_16) -> Image.Image:
    """Convert an image of any mode to RGB: transparency over white, 16 bits scaled to 8.

    Args:
        image: a Pillow image with its pixels loaded. An opaque RGB image is returned as it is.
        white_level: the value of a 16-bit gray pixel that is white; higher ones are white, too.

    Raises:
        ImageError: for pixels whose range no standard fixes.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image), white_level, image.info.get("transparency")).convert("RGB")
    if image.mode == "F":
        raise ImageError("its pixels are floats, whose range no standard fixes; convert it to 8 or 16 bits")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.has_transparency_data:
        color = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(color, mask=color.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_16_bits(values: npt.NDArray[Any], white: int, clear: object) -> Image.Image:
    """Convert gray values; pixels that have the value `clear`, an int in PNG, are transparent."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE_16:
        raise ImageError(f"its values run from {low} to {high}, which is neither 8 nor 16 bits")
    # Rounded to the nearest.
    scaled = (255 * np.minimum(values, white).astype(np.uint32) + white // 2) // white
    if isinstance(clear, int):
        scaled[values == clear] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # rare, and it loads the color management library

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None  # only in place gives None
    return converted
