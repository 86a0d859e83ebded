"""Forms of files that Pillow decodes to the pixels they hold; others are refused, whatever it makes of them.

For each format files were written bit by bit and compared with what Pillow gives.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from ..errors import ImageError
from .inner import check_icns
from .jpeg import check_jpeg
from .modes import DEEP_COLOR, WHITE_16

_AS_PNG = "; convert it to PNG"
_SCALED = ("JPEG2000", "PPM")  # formats of gray with a white of its own, which Pillow makes one of 16 bits


@dataclass(frozen=True, slots=True)
class Form:
    """Statements of a file about its pixels, beyond those that Pillow passes on."""

    white: int | None = None  # gray value that is white, where the file says so; None: 65,535 or the caller's
    opaque: bool = False  # what Pillow gives as alpha is none
    may_be_blank: bool = True  # alpha that is 0 everywhere is meant; other programs ignore it
    check_pixels: Callable[[Image.Image], None] | None = None  # once they are decoded


@dataclass(frozen=True, slots=True)
class _Opened:
    """An opened file: its header is read, its pixels are not."""

    image: Any  # each check knows the plugin of Pillow
    file: IO[bytes]
    white_stated: bool  # the caller says which value of a 16-bit gray pixel is white
    max_pixels: int

    def read(self, at: int, length: int) -> bytes:
        self.file.seek(at)
        return self.file.read(length)

    def number(self, at: int, length: int, order: str) -> int:
        return int.from_bytes(self.read(at, length), order)  # type: ignore[arg-type]


def is_read(name: str) -> bool:
    """Return whether files of a format of `Image.OPEN` are read: those known here, and other packages'."""
    factory = Image.OPEN[name][0] if name in Image.OPEN else None
    return name in _CHECKS or (factory is not None and not factory.__module__.startswith("PIL."))


def check_form(image: Image.Image, *, white_stated: bool, max_pixels: int) -> Form:
    """Check an image whose header is read. One that is in memory already has no form.

    Args:
        image: of Pillow; its file is left where it was.
        white_stated: the caller says which value of a 16-bit gray pixel is white.
        max_pixels: limit of the caller.

    Raises:
        ImageError: for a format or form of which Pillow makes other pixels than the file holds, and for one
            that takes far more memory or time than its size tells.
    """
    name, file, tiles = image.format or "", getattr(image, "fp", None), getattr(image, "tile", ())
    known = type(image).__module__.startswith("PIL.")
    if known and white_stated and not tiles and name in _SCALED and image.mode.startswith("I"):
        raise ImageError(
            f"it is decoded {name}, whose own white is lost; pass its file, or use no white_level"
        )
    if not known or file is None or not (tiles or name in ("ICO", "ICNS")):
        return Form()
    if name not in _CHECKS:
        raise ImageError(f"it is {name}, of which Pillow may make other pixels than it holds{_AS_PNG}")
    at = file.tell()
    try:
        form = _CHECKS[name](_Opened(image, file, white_stated, max_pixels))
    finally:
        file.seek(at)
    raw = str(tiles[:1])  # how Pillow reads the pixels
    if white_stated and not image.mode.startswith("I") and (";16" in raw or "SGI16" in raw):
        raise ImageError(DEEP_COLOR)
    return form


def _trust(_opened: _Opened) -> Form:
    return Form()


def _jpeg(opened: _Opened) -> Form:
    check_jpeg(opened.image, opened.file)
    return Form()


def _jpeg2000(opened: _Opened) -> Form:
    from .jpeg import check_jpeg2000

    depth = check_jpeg2000(opened.image, opened.file, opened.max_pixels)
    if depth == 16 and opened.white_stated and not opened.image.mode.startswith("I"):
        raise ImageError(DEEP_COLOR)
    return Form(white=(2**depth - 1) << (16 - depth) if 8 < depth < 16 else None)  # Pillow fills up 16 bits


def _avif(opened: _Opened) -> Form:
    from .avif import check_avif

    check_avif(opened.file, opened.max_pixels)
    return Form()


def _tiff(opened: _Opened) -> Form:
    from .tiff import check_tiff

    return Form(white=check_tiff(opened.image, white_stated=opened.white_stated))


def _png(opened: _Opened) -> Form:
    if opened.read(12, 4) != b"IHDR":
        raise ImageError(f"it is a PNG of an iPhone app, which Pillow does not read{_AS_PNG}")
    bits, color = opened.read(24, 2)
    clear = opened.image.info.get("transparency")
    if color == 0 and bits in (2, 4) and isinstance(clear, int) and clear < 2**bits:
        opened.image.info["transparency"] = clear * (255 // (2**bits - 1))  # as Pillow scales the pixels
    if bits == 16 and color == 2 and clear is not None:
        raise ImageError("it has 16 bits per color and a transparent color; convert it to 8 bits")
    if bits == 16 and opened.white_stated:
        chunks = _chunks_before_pixels(opened, 0)
        significant = [opened.read(at, 1)[0] for name, at in chunks if name == b"sBIT"]
        if significant and significant[0] < 16:
            found = f"{significant[0]} significant bits, which PNG scales to 16"
            raise ImageError(f"it states {found}, against white_level; remove its sBIT chunk")
    return Form(check_pixels=lambda image: _check_last_row(image, opened.file))


def _check_last_row(image: Image.Image, file: IO[bytes]) -> None:
    """Refuse a PNG whose pixels end early: the rows that are missing are blank, or those of a pass."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if image.info.get("interlace") or not any(last_row.tobytes()):
        from .png import check_end

        check_end(image, file)


def _chunks_before_pixels(opened: _Opened, start: int) -> Iterator[tuple[bytes, int]]:
    """Give the names of a PNG's chunks before its pixels, and where their data begin."""
    from .png import read_chunks

    for name, at, _ in read_chunks(opened.file, start):
        if name in (b"IDAT", b"IEND"):
            return
        yield name, at


def _bmp(opened: _Opened) -> Form:
    start = 14 if opened.image.format == "BMP" else 0
    length = opened.number(start, 4, "little")
    bits = opened.number(start + (10 if length == 12 else 14), 2, "little")
    codec, _, _, args = opened.image.tile[0]
    if codec == "raw" and bits != {"1": 1, "L": 8}.get(args[0], bits):
        raise ImageError(f"it has {bits} bits per pixel and few grays, which Pillow mistakes{_AS_PNG}")
    masked = length >= 56 and opened.number(start + 16, 4, "little") == 3
    if bits == 16 and masked and opened.number(start + 52, 4, "little"):
        raise ImageError(f"it has 16 bits per pixel and alpha, which Pillow does not read{_AS_PNG}")
    return Form(may_be_blank=False)


def _ico(opened: _Opened) -> Form:
    entry = opened.image.ico.entry[0]  # what Pillow has decoded
    if opened.read(entry.offset, 4) == b"\x89PNG":
        _check_inner_png(opened, entry.offset)
    elif (opened.number(entry.offset + 14, 2, "little") == 32) != (entry.bpp == 32):
        raise ImageError(f"it is an icon that states two numbers of bits per pixel{_AS_PNG}")
    return Form(may_be_blank=False)


def _icns(opened: _Opened) -> Form:
    for at in check_icns(opened.file):
        _check_inner_png(opened, at)
    return Form()


def _check_inner_png(opened: _Opened, at: int) -> None:
    """Refuse what Pillow leaves behind when it takes a PNG out of an icon."""
    if any(name == b"tRNS" for name, _ in _chunks_before_pixels(opened, at)):
        raise ImageError(f"it is an icon with transparent colors, which Pillow shows{_AS_PNG}")


def _gif(opened: _Opened) -> Form:
    image = opened.image
    if image._frame_palette is None and not opened.read(10, 1)[0] & 0x80:
        raise ImageError(f"it is a GIF without colors{_AS_PNG}")
    covers = image.tile[0][1] == (0, 0, *image.size)
    if image.tell() == 0 and not covers and "transparency" not in image.info:
        raise ImageError(f"its first frame covers a part, and the rest has no defined color{_AS_PNG}")
    return Form()


def _pcx(opened: _Opened) -> Form:
    if opened.read(2, 1) != b"\1":
        raise ImageError(f"it is PCX without compression, which Pillow mistakes{_AS_PNG}")
    found = opened.read(3, 1)[0], opened.read(65, 1)[0]
    if found not in ((1, 1), (8, 1), (8, 3)):
        raise ImageError(f"it is PCX of {found[1]} planes of {found[0]} bits, which is rare{_AS_PNG}")
    return Form()


def _ppm(opened: _Opened) -> Form:
    if opened.read(1, 1) in b"0y":
        raise ImageError(f"it is a variant of PPM for tests of Pillow{_AS_PNG}")
    codec, _, _, args = opened.image.tile[0]
    if codec == "ppm_plain":
        from .parts import check_comments

        check_comments(opened.file)
    most = args[-1] if codec.startswith("ppm") and isinstance(args, tuple) else 0
    if most == WHITE_16 and opened.white_stated and opened.image.mode == "RGB":
        raise ImageError(DEEP_COLOR)
    return Form(white=WHITE_16 if 255 < most < WHITE_16 else None)  # Pillow scales what is below


def _psd(opened: _Opened) -> Form:
    bits, mode = struct.unpack(">HH", opened.read(22, 4))
    hidden = mode == 2 and any(resource[0] == 1047 for resource in opened.image.resources)
    if bits != 8 or mode not in (1, 2, 3, 4, 9) or hidden:
        raise ImageError(
            "it is PSD of a rare kind (not gray, RGB, CMYK, Lab or opaque palette); convert it to PNG"
        )
    # Photoshop stores the merged image over white already; a fourth channel may be a selection.
    return Form(opaque=True)


def _sgi(opened: _Opened) -> Form:
    if opened.number(104, 4, "big"):
        raise ImageError(f"it is SGI with a colormap, which Pillow does not read{_AS_PNG}")
    return Form()


def _tga(opened: _Opened) -> Form:
    header = opened.read(0, 18)
    alpha, deep = header[17] & 15, header[16]
    shallow = (header[2] & 7 == 2 and deep == 16) or (header[1] and header[7] == 16)
    if header[17] & 0xC0 or alpha not in (0, 8) or (alpha and shallow):
        raise ImageError(f"it is TGA of a rare kind (interleaved, or {alpha} bits of alpha){_AS_PNG}")
    end = max(opened.file.seek(0, 2) - 26, 0)
    footer = opened.read(end, 26)
    if alpha and footer[8:] == b"TRUEVISION-XFILE.\0" and (extension := int.from_bytes(footer[:4], "little")):
        kind = opened.number(extension + 494, 1, "little")
        if kind != 3:  # to be ignored, or premultiplied
            raise ImageError(f"it is TGA with alpha of kind {kind} (usual: 3, useful alpha){_AS_PNG}")
    return Form(opaque=alpha == 0, may_be_blank=False)


_CHECKS: dict[str, Callable[[_Opened], Form]] = {
    "AVIF": _avif,
    "BMP": _bmp,
    "DIB": _bmp,
    "GIF": _gif,
    "ICNS": _icns,
    "ICO": _ico,
    "JPEG": _jpeg,
    "JPEG2000": _jpeg2000,
    "MPO": _jpeg,
    "PCX": _pcx,
    "PNG": _png,
    "PPM": _ppm,
    "PSD": _psd,
    "QOI": _trust,
    "SGI": _sgi,
    "TGA": _tga,
    "TIFF": _tiff,
    "WEBP": _trust,
}
