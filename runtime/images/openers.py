"""More formats for the command line, from packages that are installed beside it; an app registers its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
_EXIF_OF_FLIP = {3: 3, 5: 8, 6: 6}  # LibRaw's turns as EXIF orientations


def register_openers() -> tuple[str, ...]:
    """Let Pillow read what installed packages read: HEIC, JPEG XL, raw photos. Call it before any walk.

    Returns:
        The names of the packages that are there.
    """
    from .find_images import image_suffixes

    found = tuple(name for name, register in _OPENERS.items() if _registered(name, register))
    image_suffixes.cache_clear()
    return found


def _registered(name: str, register: Callable[[Any], object]) -> bool:
    try:
        register(import_module(name))
    except ImportError:
        return False
    return True


def _register_raw(_rawpy: Any) -> None:
    """Put the opener first: raw photos are TIFF files, of which Pillow itself would find the preview."""
    if RawPhoto.format in Image.OPEN:
        return
    Image.init()
    Image.register_open(RawPhoto.format, RawPhoto)
    Image.ID.remove(RawPhoto.format)
    Image.ID.insert(0, RawPhoto.format)
    Image.register_extensions(RawPhoto.format, list(RAW_SUFFIXES))


class RawPhoto(ImageFile.ImageFile):
    """A raw photo of a camera, developed by LibRaw at 8 bits with the white balance of the camera."""

    format = "RAW"
    format_description = "raw photo of a camera"

    def _open(self) -> None:
        import rawpy

        name = getattr(self.fp, "name", "") or self.filename
        if not isinstance(name, str | Path) or Path(name).suffix.lower() not in RAW_SUFFIXES:
            raise SyntaxError("not a raw photo by its name")  # what makes Pillow ask the next plugin
        try:
            self._photo = rawpy.imread(self.fp)
        except rawpy.LibRawError as error:
            raise SyntaxError(f"LibRaw cannot read it: {error}") from error
        sizes = self._photo.sizes
        self._size, self._mode = (sizes.width, sizes.height), "RGB"
        if (orientation := _EXIF_OF_FLIP.get(sizes.flip)) is not None:
            self.getexif()[0x0112] = orientation

    def load(self) -> Any:
        """Develop the photo; how it is turned is left to the EXIF orientation."""
        if self._photo is not None:
            with self._photo as photo:
                pixels = photo.postprocess(use_camera_wb=True, user_flip=0)
            self._photo = None
            developed = Image.fromarray(pixels)
            self._size, self.im = developed.size, developed.im
        return Image.Image.load(self)


_OPENERS: dict[str, Callable[[Any], object]] = {
    "pillow_heif": lambda package: package.register_heif_opener(),
    "pillow_jxl": lambda _: None,  # importing it registers its plugin
    "rawpy": _register_raw,
}
