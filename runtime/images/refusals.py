"""Words for a file that Pillow does not open or decode: what it is, by its first bytes, and why not."""

from __future__ import annotations

import struct
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from ..errors import limit_of
from ..text import one_line

START = 32  # bytes at the start of a file that say what it is

_RAW = "it is a raw photo of a camera, which the command line reads with rawpy; convert it to JPEG"
# First bytes, where they stand, and what the file is. Formats of Pillow's own are asked of its plugins.
_STRANGERS: tuple[tuple[int, bytes, str], ...] = (
    *(
        (4, b"ftyp" + brand, "it is HEIC, which Pillow reads only with pillow-heif; convert it to JPEG")
        for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
    ),
    *(
        (at, start, "it is JPEG XL, which Pillow reads only with pillow-jxl-plugin; convert it to JPEG")
        for at, start in ((0, b"\xff\x0a"), (4, b"JXL \r\n\x87\n"))
    ),
    *(
        (at, start, _RAW)
        for at, start in ((4, b"ftypcrx "), (0, b"FUJIFILMCCD-RAW"), (0, b"IIRO"), (0, b"IIU\0"))
    ),
    (0, b"v/1\x01", "it is OpenEXR, whose pixels are floats; convert it to 8 or 16 bits"),
    (0, b"#?RADIANCE", "it is Radiance HDR, whose pixels are floats; convert it to 8 or 16 bits"),
    (0, b"II\xbc", "it is JPEG XR, which Pillow does not read; convert it to JPEG"),
    (0, b"%PDF-", "it is PDF, a document and not an image; convert its pages to PNG"),
    *((0, start, "it is XML; if it is an SVG drawing, convert it to PNG") for start in (b"<?xml", b"<svg")),
)
# Parts of the reasons that Pillow and the libraries below it give, and what they mean.
_DAMAGED, _SHORT = "its data are damaged", "it is cut short: the end of its data is missing"
_MEANINGS = (
    ("decoder error", "its data are damaged, or of a kind that this Pillow lacks"),
    ("buffer overrun", "its data are damaged: they do not fit into an image of its size"),
    ("broken data stream", _DAMAGED),
    ("unrecognized data stream", _DAMAGED),
    ("Invalid argument", _DAMAGED),
    ("runcat", _SHORT),  # truncated, Truncated
    ("not enough image data", _SHORT),
    ("Expected to read", _SHORT),
    ("EOF", _SHORT),
    ("Incomplete header", _SHORT),
    ("invalid literal for int", "its header is damaged"),
    ("could not convert string to float", "its header is damaged"),
    (
        "cannot find loader for this",
        "it is a drawing for Windows, where alone Pillow reads it; convert it to PNG",
    ),
    ("cannot load this image", "there is nothing in it that Pillow can decode"),
    ("Corrupt EXIF data", "its header is damaged"),
    ("broken PNG file", "its header is damaged"),
    ("Decompressed data too large", "a text in it is too large when it is decompressed"),
    ("not identified by this driver", "its header is damaged, or it has no pixels"),
    ("unknown pixel mode", "its pixels are of a kind that Pillow does not read"),
)
_COLORS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "CIELAB"}
_COLORS |= {10: "CIELAB", 32803: "raw photo of a camera", 34892: "raw photo of a camera"}
_NUMBERS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}


def explained(error: Exception, step: str, max_pixels: int, file: IO[bytes] | None = None) -> str:
    """Return the words for a failure of Pillow.

    Args:
        error: the failure.
        step: "read" or "decoded".
        max_pixels: the limit of the caller.
        file: the file, where Pillow has read no more than its first bytes.
    """
    if isinstance(error, Image.DecompressionBombError):
        return too_many_for_pillow(max_pixels)
    if isinstance(error, UnidentifiedImageError) and file is not None:
        return unidentified(file)
    return f"it cannot be {step}: {reason(error)}"


def too_many_for_pillow(max_pixels: int) -> str:
    """Return the reason after Pillow's error about too many pixels: whichever limit is the lower one."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels <= 2 * Image.MAX_IMAGE_PIXELS:
        return f"it has more pixels than {limit_of(max_pixels)}"
    return "it has more pixels than Pillow opens; set PIL.Image.MAX_IMAGE_PIXELS as well to allow it"


def reason(error: Exception) -> str:
    """Return Pillow's reason for a failure, without the numbers and terms of the libraries below it."""
    text = one_line(getattr(error, "strerror", None) or str(error))
    if not text:  # what Pillow asserts of its own
        return _DAMAGED if isinstance(error, AssertionError) else type(error).__name__
    return next((meaning for part, meaning in _MEANINGS if part in text), text)


def unidentified(file: IO[bytes]) -> str:
    """Return what a file is that no plugin of Pillow has opened, and why none did.

    Args:
        file: is read from its start.
    """
    file.seek(0)
    start = file.read(START).removeprefix(b"\xef\xbb\xbf")
    for at, magic, words in _STRANGERS:
        if start.startswith(magic, at):
            return words
    for name, (factory, accept) in Image.OPEN.items():
        known = _accepted(accept, start[:16])
        if isinstance(known, str):  # a plugin whose library was left out of this Pillow
            return f"it is {name}, which this Pillow cannot read ({known})"
        file.seek(0)
        if known and (why := _why_not(factory, file)):
            return f"it is {name} by its first bytes, and cannot be read: {why}"
    return "it is no image in a format that Pillow reads"


def _accepted(accept: Any, start: bytes) -> bool | str:
    """Return what a plugin says of the first bytes of a file, which may be too few to look at."""
    try:
        found: bool | str = accept(start) if accept is not None else False
    except Exception:
        return False
    return found


def _why_not(factory: Any, file: IO[bytes]) -> str | None:
    """Return why a plugin refuses a file; None where it finds that it is not its own."""
    try:
        factory(file, "").close()
    except Exception as error:  # what Image.open has swallowed
        file.seek(0)
        if "unknown pixel mode" in str(error) and (kind := _kind_of_tiff(file)):
            return f"its pixels are of a kind that Pillow does not read ({kind}); convert it to 8 or 16 bits"
        if str(error).startswith(("not a ", "not an ")):
            return None
        clumsy = isinstance(error.__cause__, IndexError | TypeError | KeyError | EOFError | struct.error)
        return "its header is damaged" if clumsy else reason(error)
    return "its header is damaged"


def _kind_of_tiff(file: IO[bytes]) -> str | None:
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
