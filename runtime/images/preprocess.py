"""Preprocess images for a model: the same steps for training, calibration, measurement and the runtime.

The steps are data (`Preprocess`) that is stored in checkpoints and model files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decode import MAX_PIXELS, ImageSource, decode_image, reserve_memory
from .formats import WHITE_16
from .resize import resize, size_between

if TYPE_CHECKING:
    import numpy.typing as npt  # slow to import, and the runtime has to start fast

__all__ = ["MAX_PIXELS", "ImageError", "ImageSource", "Pixels", "Preprocess"]

Resize = Literal["stretch", "crop"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Decode = Literal["full", "draft"]
Pixels: TypeAlias = "npt.NDArray[np.uint8]"

_MAX_EDGE = 4096  # of the model's input; larger ones are an error or an attack
_DRAFT_FACTOR = 2  # a JPEG is never decoded below this many times the size that the resize needs


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing of a model; a call turns an image into the input of the model.

    Raises:
        ValueError: for values that describe no possible preprocessing.
    """

    size: tuple[int, int] = (224, 224)  # (height, width) that the model takes
    resize: Resize = "stretch"  # straight to `size`, or cover it and cut out the center
    # Before the center is cut out. For "crop": the image's shorter edge, or (height, width) that the image
    # covers; for "stretch": the (height, width) that it is stretched to. None: `size`
    resize_to: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"  # Pillow's filters, which average when an image shrinks
    exif: bool = True  # rotate the image by its EXIF orientation
    white_level: int = WHITE_16  # of 16-bit gray images: the value that is white; 4095 for 12-bit data
    decode: Decode = "draft"  # large JPEGs at 1/2, 1/4 or 1/8, never below twice `size`; "full": as they are

    def __post_init__(self) -> None:
        if not isinstance(self.size, tuple) or len(self.size) != 2 or not all(map(_is_whole, self.size)):
            raise ValueError(f"size must be (height, width), each 1 to {_MAX_EDGE}, found {self.size!r}")
        for name, choices in (("resize", Resize), ("interpolation", Interpolation), ("decode", Decode)):
            if (found := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, found {found!r}")
        if not isinstance(self.exif, bool):
            raise ValueError(f"exif must be true or false, found {self.exif!r}")
        if not _is_whole(self.white_level, WHITE_16):
            raise ValueError(f"white_level must be 1 to {WHITE_16}, found {self.white_level!r}")
        self._check_resize_to()

    def _check_resize_to(self) -> None:
        found = self.resize_to
        if found is None:
            return
        if isinstance(found, tuple):
            if len(found) != 2 or not all(
                _is_whole(edge) and edge >= least for edge, least in zip(found, self.size, strict=True)
            ):
                raise ValueError(f"resize_to must be (height, width), at least {self.size}, found {found!r}")
        elif self.resize != "crop":
            raise ValueError(
                'resize_to has a meaning as one number for resize="crop" only; give (height, width)'
            )
        elif not (_is_whole(found) and found >= max(self.size)):
            raise ValueError(f"resize_to must be {max(self.size)} to {_MAX_EDGE}, found {found!r}")

    def __call__(
        self,
        image: ImageSource,
        *,
        max_pixels: int = MAX_PIXELS,
        take_size: Callable[[tuple[int, int]], object] | None = None,
    ) -> Pixels:
        """Read and preprocess an image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or a uint8 array [height, width] (gray),
                [height, width, 3] (RGB, not BGR) or [height, width, 4] (RGB and alpha).
            max_pixels: an image with more pixels is refused before it is decoded.
            take_size: called with (width, height) of the upright image before it is resized.

        Returns:
            uint8 [height, width, 3], RGB, 0 to 255, C-contiguous; it shares no memory with `image`.

        Raises:
            ImageError: when it cannot be read or decoded.
            TypeError: when `image` is none of the above.
        """
        before = self.resize_to if isinstance(self.resize_to, tuple) else (self.resize_to or 0,)
        edge = _DRAFT_FACTOR * max(*self.size, *before) if self.decode == "draft" else None
        with decode_image(
            image,
            max_pixels=max_pixels,
            exif=self.exif,
            draft_edge=edge,
            white_level=self.white_level,
            take_size=take_size,
        ) as opened:
            out = (self.size[1], self.size[0])  # Pillow counts (width, height)
            method, box = Image.Resampling[self.interpolation.upper()], self._box(opened.size)
            with reserve_memory(size_between(opened.size, out, method, box), max_pixels):
                return np.array(resize(opened, out, method, box))  # (height, width, 3)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as a JSON value; `white_level` only where it is not the default.

        So readers that do not know this field refuse only files that need it.
        """
        resize_to = list(self.resize_to) if isinstance(self.resize_to, tuple) else self.resize_to
        document = asdict(self) | {"size": list(self.size), "resize_to": resize_to}
        if self.white_level == WHITE_16:
            del document["white_level"]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing of a document that `to_dict` has made, also after it was stored as JSON.

        Args:
            document: a value for every field; only `white_level` may be missing.

        Raises:
            ValueError: for an unknown or missing field, or a value that makes no sense.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, set(document) - known)):
            raise ValueError(f"unknown preprocessing {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - {"white_level"} - set(document)):
            raise ValueError(f"preprocessing lacks {', '.join(missing)}")
        pairs = {
            name: tuple(document[name]) if isinstance(document[name], list) else document[name]
            for name in ("size", "resize_to")
        }
        return cls(**{**document, **pairs})

    def _box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the part of a (width, height) image that is scaled to `size`: left, top, right, bottom.

        "crop" is torchvision's Resize and CenterCrop in one step, with the same rounding. It crops before
        it scales, so that an image one pixel wide does not grow to gigabytes.
        """
        width, height = size
        rows, columns = self.size
        if self.resize == "stretch":
            if self.resize_to is None:
                return 0, 0, width, height
            assert isinstance(self.resize_to, tuple)  # __post_init__ has checked it
            scaled = self.resize_to[1], self.resize_to[0]
        elif isinstance(self.resize_to, int):
            short = min(size)
            scaled = (int(self.resize_to * width / short), int(self.resize_to * height / short))
        else:
            down, across = self.resize_to or self.size
            scale = max(across / width, down / height)
            scaled = (max(across, round(width * scale)), max(down, round(height * scale)))
        left, top = round((scaled[0] - columns) / 2), round((scaled[1] - rows) / 2)
        x, y = width / scaled[0], height / scaled[1]
        return left * x, top * y, min((left + columns) * x, width), min((top + rows) * y, height)


def _is_whole(value: object, most: int = _MAX_EDGE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def scale_resize_to(resize_to: int | tuple[int, int] | None, scale: float) -> int | tuple[int, int] | None:
    """Return the `resize_to` that keeps the view of a preprocessing whose `size` is scaled.

    Args:
        resize_to: a field of `Preprocess`; None stays None.
        scale: new size divided by old size.
    """
    if isinstance(resize_to, tuple):
        return round(resize_to[0] * scale), round(resize_to[1] * scale)
    return None if resize_to is None else round(resize_to * scale)
