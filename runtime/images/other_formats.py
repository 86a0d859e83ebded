"""Formats that Pillow does not read: packages that add them, and the messages where there is none."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import describe_pixel_limit
from ..text import clean_line

# --- Packages that add formats, for the command lines; an app registers its own ---

RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef")
_EXIF_OF_FLIP = {3: 3, 5: 8, 6: 6}  # LibRaw's turns as EXIF orientations


def register_openers() -> tuple[str, ...]:
    """Let Pillow read what installed packages read: HEIC, JPEG XL, raw photos. Call it before any walk.

    Returns:
        The names of the packages that are installed.
    """
    from .find_images import image_suffixes

    found = []
    for name, register in _OPENERS.items():
        with suppress(ImportError):
            register(import_module(name))
            found.append(name)
    image_suffixes.cache_clear()
    return tuple(found)


def _register_raw(_rawpy: Any) -> None:
    """Register the opener before all others: raw photos are TIFF files, of which Pillow opens the preview."""
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


# --- Messages for a file that Pillow does not open or decode: what it is, and why not ---

_START = 32  # bytes at the start of a file that identify it

_HEIC = "it is HEIC, which Pillow reads only with pillow-heif; convert it to JPEG"
_JPEG_XL = "it is JPEG XL, which Pillow reads only with pillow-jxl-plugin; convert it to JPEG"
_RAW = "it is a raw photo of a camera, which the command line reads with rawpy; convert it to JPEG"
_XML = "it is XML; if it is an SVG drawing, convert it to PNG"
# Where the first bytes stand, and what the file is. Formats of Pillow's own are asked of its plugins.
_OTHER_FORMATS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"), _HEIC),
    (0, (b"\xff\x0a",), _JPEG_XL),
    (4, (b"JXL \r\n\x87\n",), _JPEG_XL),
    (4, (b"ftypcrx ",), _RAW),
    (0, (b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0"), _RAW),
    (0, (b"v/1\x01",), "it is OpenEXR, whose pixels are floats; convert it to 8 or 16 bits"),
    (0, (b"#?RADIANCE",), "it is Radiance HDR, whose pixels are floats; convert it to 8 or 16 bits"),
    (0, (b"II\xbc",), "it is JPEG XR, which Pillow does not read; convert it to JPEG"),
    (0, (b"%PDF-",), "it is PDF, a document and not an image; convert its pages to PNG"),
    (0, (b"<?xml", b"<svg"), _XML),
)
_DAMAGED, _DAMAGED_HEADER = "its data are damaged", "its header is damaged"
_SHORT = "it is cut short: the end of its data is missing"
_WINDOWS_DRAWING = "it is a drawing for Windows, where alone Pillow reads it; convert it to PNG"
# The meaning of parts of the messages of Pillow and its libraries.
_MEANINGS: Mapping[str, tuple[str, ...]] = {
    f"{_DAMAGED}, or of a kind that this Pillow lacks": ("decoder error",),
    f"{_DAMAGED}: they do not fit into an image of its size": ("buffer overrun",),
    _DAMAGED: ("broken data stream", "unrecognized data stream", "Invalid argument"),
    # "runcat": truncated, Truncated
    _SHORT: ("runcat", "not enough image data", "Expected to read", "EOF", "Incomplete header"),
    _DAMAGED_HEADER: (
        "invalid literal for int",
        "could not convert string",
        "Corrupt EXIF",
        "broken PNG file",
    ),
    _WINDOWS_DRAWING: ("cannot find loader for this",),
    "there is nothing in it that Pillow can decode": ("cannot load this image",),
    "a text in it is too large when it is decompressed": ("Decompressed data too large",),
    f"{_DAMAGED_HEADER}, or it has no pixels": ("not identified by this driver",),
    "its pixels are of a kind that Pillow does not read": ("unknown pixel mode",),
}
_COLORS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "CIELAB"}
_COLORS |= {10: "CIELAB", 32803: "raw photo of a camera", 34892: "raw photo of a camera"}
_NUMBERS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}


def explain_failure(error: Exception, step: str, max_pixels: int, file: IO[bytes] | None = None) -> str:
    """Return the message for an image that Pillow failed to read; step is "read" or "decoded".

    `file` is given where Pillow has not opened it, and is None where it failed later.
    """
    if isinstance(error, Image.DecompressionBombError):
        if Image.MAX_IMAGE_PIXELS is None or max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
            return "it has more pixels than Pillow opens; set PIL.Image.MAX_IMAGE_PIXELS as well to allow it"
        return f"it has more pixels than {describe_pixel_limit(max_pixels)}"
    if isinstance(error, UnidentifiedImageError) and file is not None:
        return _identify(file)
    return f"it cannot be {step}: {translate_reason(error)}"


def translate_reason(error: Exception) -> str:
    """Return Pillow's reason for a failure, without the numbers and terms of the libraries below it."""
    text = clean_line(getattr(error, "strerror", None) or str(error))
    if not text:  # what Pillow asserts of its own
        return _DAMAGED if isinstance(error, AssertionError) else type(error).__name__
    return next(
        (meaning for meaning, parts in _MEANINGS.items() if any(part in text for part in parts)), text
    )


def _identify(file: IO[bytes]) -> str:
    """Return what a file is that no plugin of Pillow has opened, and why none did."""
    file.seek(0)
    start = file.read(_START).removeprefix(b"\xef\xbb\xbf")
    for at, magic, message in _OTHER_FORMATS:
        if start.startswith(magic, at):
            return message
    for name, (factory, accept) in Image.OPEN.items():
        accepted = _ask_plugin(accept, start[:16])
        if isinstance(accepted, str):  # a plugin whose library was left out of this Pillow
            return f"it is {name}, which this Pillow cannot read ({accepted})"
        file.seek(0)
        if accepted and (why := _find_reason(factory, file)):
            return f"it is {name} by its first bytes, and cannot be read: {why}"
    return "it is no image in a format that Pillow reads"


def _ask_plugin(accept: Any, start: bytes) -> bool | str:
    """Return the answer of a plugin to the first bytes of a file, which may be too few for it."""
    try:
        found: bool | str = accept(start) if accept is not None else False
    except Exception:
        return False
    return found


def _find_reason(factory: Any, file: IO[bytes]) -> str | None:
    """Return why a plugin refuses a file; None where it finds that it is not its own."""
    try:
        factory(file, "").close()
    except Exception as error:  # what Image.open has swallowed
        file.seek(0)
        if "unknown pixel mode" in str(error) and (kind := _describe_tiff(file)):
            return f"its pixels are of a kind that Pillow does not read ({kind}); convert it to 8 or 16 bits"
        if str(error).startswith(("not a ", "not an ")):
            return None
        clumsy = isinstance(error.__cause__, IndexError | TypeError | KeyError | EOFError | struct.error)
        return _DAMAGED_HEADER if clumsy else translate_reason(error)
    return _DAMAGED_HEADER


def _describe_tiff(file: IO[bytes]) -> str | None:
    """Return the colors and numbers of a TIFF's pixels, by its tags; None where they cannot be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        color = _COLORS.get(tags.get(262, 0), "unknown colors")
        bits, form = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
        words = f"{color}, {int(bits)}-bit {_NUMBERS.get(form, 'numbers')}"
    except Exception:  # the tags are as damaged as the rest may be
        return None
    return words + (", with a predictor" if tags.get(317, 1) != 1 else "")
