"""The image formats that are read, and for each a check that Pillow decodes a file to the pixels it holds.

For each format files were written bit by bit and compared with what Pillow gives; forms that differ are
corrected or refused. To add a format, write its check, here or in a file of its own, name it in `_CHECKS`,
and add its forms to tests/runtime/images/test_formats.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from ..errors import ImageError

WHITE_16 = 65535
DEEP_COLOR = "it has 16 bits per color, white_level is for gray images; convert it to gray, or to 8 bits"
_AS_PNG = "; convert it to PNG"
_SCALED = ("JPEG2000", "PPM")  # formats of gray with a white of its own, which Pillow makes one of 16 bits


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Statements of a file about its pixels, beyond those that Pillow passes on."""

    white: int | None = None  # gray value that is white; None: not stated, so 65,535 or the caller's
    opaque: bool = False  # the alpha that Pillow gives has no meaning
    may_be_blank: bool = True  # False: an alpha of 0 everywhere is an error, since other programs ignore it
    check_pixels: Callable[[Image.Image], None] | None = None  # to be called once they are decoded


@dataclass(frozen=True, slots=True)
class _Opened:
    """An opened file: its header is read, its pixels are not."""

    image: Any  # of the plugin of Pillow for its format
    file: IO[bytes]
    white_stated: bool  # by the caller, who passed another `white_level` than 65,535
    max_pixels: int

    def read(self, at: int, length: int) -> bytes:
        """Read bytes from a position on."""
        self.file.seek(at)
        return self.file.read(length)

    def read_little(self, at: int, length: int) -> int:
        """Read a number whose least significant byte comes first."""
        return int.from_bytes(self.read(at, length), "little")


def is_supported(name: str) -> bool:
    """Return whether files of a format of `Image.OPEN` are read: those of `_CHECKS`, and other packages'."""
    factory = Image.OPEN[name][0] if name in Image.OPEN else None
    return name in _CHECKS or (factory is not None and not factory.__module__.startswith("PIL."))


def check_format(image: Image.Image, *, white_stated: bool, max_pixels: int) -> PixelFormat:
    """Check an image whose header is read; one that was decoded before has no statements.

    The position of its file is kept. `white_stated`: the caller stated the value of a 16-bit gray pixel that
    is white. ImageError is raised for a form of which Pillow makes other pixels than the file holds, and for
    one that takes far more memory or time than its size suggests.
    """
    name, file, tiles = image.format or "", getattr(image, "fp", None), getattr(image, "tile", ())
    by_pillow = type(image).__module__.startswith("PIL.")
    if by_pillow and white_stated and not tiles and name in _SCALED and image.mode.startswith("I"):
        raise ImageError(
            f"it is decoded {name}, whose own white is lost; pass its file, or use no white_level"
        )
    if not by_pillow or file is None or not (tiles or name in ("ICO", "ICNS")):
        return PixelFormat()
    if name not in _CHECKS:
        raise ImageError(f"it is {name}, of which Pillow may make other pixels than it holds{_AS_PNG}")
    at = file.tell()
    try:
        found = _CHECKS[name](_Opened(image, file, white_stated, max_pixels))
    finally:
        file.seek(at)
    raw = str(tiles[:1])  # how Pillow reads the pixels
    if white_stated and not image.mode.startswith("I") and (";16" in raw or "SGI16" in raw):
        raise ImageError(DEEP_COLOR)
    return found or PixelFormat()


# --- Before Pillow opens a file: parts that take it long, and icons, which it decodes at once ---

_ICO, _PNG, _JPEG = b"\0\0\1\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_CODESTREAM, _JP2 = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
# Real files have 20 chunks or segments, and pixels in chunks of 8 KiB or more.
_MOST_PARTS, _BYTES_PER_PART = 10_000, 4096
# Bitmaps in icons, by the length of their headers.
_BITMAPS = frozenset(length.to_bytes(4, "little") for length in (40, 52, 56, 64, 108, 124))
_MOST_ICONS = 1000  # in a file of macOS: real ones have 20
_LONGEST_EDGE = 1024  # of an icon: Windows has up to 256, macOS up to this


def check_parts(file: IO[bytes], length: int) -> None:
    """Refuse far more chunks of a PNG or segments of a JPEG than its length explains; other formats pass.

    The file is at its start, where it is left.
    """
    from .jpeg import read_segments
    from .png import read_chunks

    start = file.read(8)
    parts: Iterator[object] = iter(())
    if start == _PNG:
        parts = read_chunks(file, 0)
    elif start.startswith(_JPEG):
        parts = read_segments(file)
    most = _MOST_PARTS + length // _BYTES_PER_PART
    for number, _ in enumerate(parts):
        if number >= most:
            raise ImageError(f"it has more than {most:,} chunks or segments (usual: 10 to 20); save it again")
    file.seek(0)


def check_ico(file: IO[bytes], check_size: Callable[[tuple[int, int]], object]) -> None:
    """Check the images inside an icon of Windows, which Pillow decodes as it opens the file.

    The file, which may be any, is at its start, where it is left. `check_size` takes (width, height), and
    raises an error for a size that must not be decoded.
    """
    start = file.read(6)
    if start.startswith(_ICO):
        entries = file.read(16 * int.from_bytes(start[4:], "little"))
        for at in range(12, len(entries) - 3, 16):
            file.seek(int.from_bytes(entries[at : at + 4], "little"))
            size = _read_size(file.read(64))
            check_size(size)
            _check_edges(size)
    file.seek(0)


def _check_edges(size: tuple[int, int]) -> None:
    if max(size) > _LONGEST_EDGE:
        found = f"it is an icon that holds an image of {size[0]} x {size[1]} pixels"
        raise ImageError(f"{found}, more than the {_LONGEST_EDGE} of the largest icons")


def _read_size(start: bytes) -> tuple[int, int]:
    """Return (width, height) by the first 64 bytes of a PNG, JPEG 2000 or bitmap of an icon; else 1 x 1."""
    width, height = 1, 1
    padded = start.ljust(80, b"\0")
    if start.startswith(_PNG):
        width, height = struct.unpack_from(">II", padded, 16)
    elif start.startswith(_CODESTREAM):
        right, bottom, left, top = struct.unpack_from(">IIII", padded, 8)
        width, height = right - left, bottom - top
    elif start.startswith(_JP2) and (at := start.find(b"ihdr")) > 0:
        height, width = struct.unpack_from(">II", padded, at + 4)
    elif start.startswith(b"\x0c\0\0\0"):  # twice as high as it is, as all bitmaps in icons: a mask follows
        width, height = struct.unpack_from("<HH", padded, 4)
        height //= 2
    elif start[:4] in _BITMAPS:  # negative from top to bottom
        width, height = struct.unpack_from("<II", padded, 4)
        height = min(height, 2**32 - height) // 2
    return max(1, width), max(1, height)


# --- One check per format; None stands for a PixelFormat without statements ---


def _check_nothing(_opened: _Opened) -> None:
    """Accept every file: Pillow decodes all forms of the format to the pixels they hold."""


def _check_jpeg(opened: _Opened) -> None:
    from .jpeg import check_jpeg

    check_jpeg(opened.image, opened.file)


def _check_jpeg2000(opened: _Opened) -> PixelFormat:
    from .jpeg import check_jpeg2000

    depth = check_jpeg2000(opened.image, opened.file, opened.max_pixels)
    if depth == 16 and opened.white_stated and not opened.image.mode.startswith("I"):
        raise ImageError(DEEP_COLOR)
    # Pillow fills up 16 bits.
    return PixelFormat(white=(2**depth - 1) << (16 - depth) if 8 < depth < 16 else None)


def _check_avif(opened: _Opened) -> None:
    from .avif import check_avif

    check_avif(opened.file, opened.max_pixels)


def _check_tiff(opened: _Opened) -> PixelFormat:
    from .tiff import check_tiff

    return PixelFormat(white=check_tiff(opened.image, white_stated=opened.white_stated))


def _check_png(opened: _Opened) -> PixelFormat:
    from .png import check_last_row, check_png

    check_png(opened.image, opened.file, white_stated=opened.white_stated)
    return PixelFormat(check_pixels=lambda image: check_last_row(image, opened.file))


def _check_bmp(opened: _Opened) -> PixelFormat:
    start = 14 if opened.image.format == "BMP" else 0
    length = opened.read_little(start, 4)
    bits = opened.read_little(start + (10 if length == 12 else 14), 2)
    codec, _, _, args = opened.image.tile[0]
    if codec == "raw" and bits != {"1": 1, "L": 8}.get(args[0], bits):
        raise ImageError(f"it has {bits} bits per pixel and few grays, which Pillow mistakes{_AS_PNG}")
    masked = length >= 56 and opened.read_little(start + 16, 4) == 3
    if bits == 16 and masked and opened.read_little(start + 52, 4):
        raise ImageError(f"it has 16 bits per pixel and alpha, which Pillow does not read{_AS_PNG}")
    return PixelFormat(may_be_blank=False)


def _check_windows_icon(opened: _Opened) -> PixelFormat:
    entry = opened.image.ico.entry[0]  # what Pillow has decoded
    if opened.read(entry.offset, 4) == _PNG[:4]:
        _check_png_of_icon(opened.file, entry.offset)
    elif (opened.read_little(entry.offset + 14, 2) == 32) != (entry.bpp == 32):
        raise ImageError(f"it is an icon that states two numbers of bits per pixel{_AS_PNG}")
    return PixelFormat(may_be_blank=False)


def _check_macos_icon(opened: _Opened) -> None:
    at = 8
    for _ in range(_MOST_ICONS):
        start = opened.read(at, 72)
        length = int.from_bytes(start[4:8], "big")
        if len(start) < 8 or length < 8:
            return
        _check_edges(_read_size(start[8:]))
        if start.startswith(_PNG, 8):
            _check_png_of_icon(opened.file, at + 8)
        at += length
    raise ImageError(f"it is an icon of more than {_MOST_ICONS} parts")


def _check_png_of_icon(file: IO[bytes], at: int) -> None:
    """Refuse transparent colors, which Pillow ignores when it takes a PNG out of an icon."""
    from .png import read_chunks_before_pixels

    if any(name == b"tRNS" for name, _ in read_chunks_before_pixels(file, at)):
        raise ImageError(f"it is an icon with transparent colors, which Pillow shows{_AS_PNG}")


def _check_gif(opened: _Opened) -> None:
    image = opened.image
    if image._frame_palette is None and not opened.read(10, 1)[0] & 0x80:
        raise ImageError(f"it is a GIF without colors{_AS_PNG}")
    covers = image.tile[0][1] == (0, 0, *image.size)
    if image.tell() == 0 and not covers and "transparency" not in image.info:
        raise ImageError(f"its first frame covers a part, and the rest has no defined color{_AS_PNG}")


def _check_pcx(opened: _Opened) -> None:
    if opened.read(2, 1) != b"\1":
        raise ImageError(f"it is PCX without compression, which Pillow mistakes{_AS_PNG}")
    found = opened.read(3, 1)[0], opened.read(65, 1)[0]
    if found not in ((1, 1), (8, 1), (8, 3)):
        raise ImageError(f"it is PCX of {found[1]} planes of {found[0]} bits, which is rare{_AS_PNG}")


_MOST_COMMENTS, _BLOCK = 1000, 2**16


def _check_ppm(opened: _Opened) -> PixelFormat:
    if opened.read(1, 1) in b"0y":
        raise ImageError(f"it is a variant of PPM for tests of Pillow{_AS_PNG}")
    codec, _, _, args = opened.image.tile[0]
    if codec == "ppm_plain":  # for each comment Pillow copies a megabyte
        opened.file.seek(0)
        comments = 0
        while block := opened.file.read(_BLOCK):
            comments += block.count(b"#")
            if comments > _MOST_COMMENTS:
                raise ImageError(f"it has more than {_MOST_COMMENTS:,} comments (usual: 1){_AS_PNG}")
    most = args[-1] if codec.startswith("ppm") and isinstance(args, tuple) else 0
    if most == WHITE_16 and opened.white_stated and opened.image.mode == "RGB":
        raise ImageError(DEEP_COLOR)
    return PixelFormat(white=WHITE_16 if 255 < most < WHITE_16 else None)  # Pillow scales what is below


def _check_psd(opened: _Opened) -> PixelFormat:
    bits, mode = struct.unpack(">HH", opened.read(22, 4))
    hidden = mode == 2 and any(resource[0] == 1047 for resource in opened.image.resources)
    if bits != 8 or mode not in (1, 2, 3, 4, 9) or hidden:
        raise ImageError(f"it is PSD of a rare kind (not gray, RGB, CMYK, Lab or opaque palette){_AS_PNG}")
    # Photoshop stores the merged image over white already; a fourth channel may be a selection.
    return PixelFormat(opaque=True)


def _check_sgi(opened: _Opened) -> None:
    if any(opened.read(104, 4)):
        raise ImageError(f"it is SGI with a colormap, which Pillow does not read{_AS_PNG}")


def _check_tga(opened: _Opened) -> PixelFormat:
    header = opened.read(0, 18)
    alpha, deep = header[17] & 15, header[16]
    shallow = (header[2] & 7 == 2 and deep == 16) or (header[1] and header[7] == 16)
    if header[17] & 0xC0 or alpha not in (0, 8) or (alpha and shallow):
        raise ImageError(f"it is TGA of a rare kind (interleaved, or {alpha} bits of alpha){_AS_PNG}")
    end = max(opened.file.seek(0, 2) - 26, 0)
    footer = opened.read(end, 26)
    if alpha and footer[8:] == b"TRUEVISION-XFILE.\0" and (extension := int.from_bytes(footer[:4], "little")):
        kind = opened.read_little(extension + 494, 1)
        if kind != 3:  # to be ignored, or premultiplied
            raise ImageError(f"it is TGA with alpha of kind {kind} (usual: 3, useful alpha){_AS_PNG}")
    return PixelFormat(opaque=alpha == 0, may_be_blank=False)


_CHECKS: dict[str, Callable[[_Opened], PixelFormat | None]] = {
    "AVIF": _check_avif,
    "BMP": _check_bmp,
    "DIB": _check_bmp,
    "GIF": _check_gif,
    "ICNS": _check_macos_icon,
    "ICO": _check_windows_icon,
    "JPEG": _check_jpeg,
    "JPEG2000": _check_jpeg2000,
    "MPO": _check_jpeg,
    "PCX": _check_pcx,
    "PNG": _check_png,
    "PPM": _check_ppm,
    "PSD": _check_psd,
    "QOI": _check_nothing,
    "SGI": _check_sgi,
    "TGA": _check_tga,
    "TIFF": _check_tiff,
    "WEBP": _check_nothing,
}
