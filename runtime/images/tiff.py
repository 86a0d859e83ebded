"""TIFF: refuse the forms that Pillow opens and decodes to other pixels than they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ImageError

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile  # slow to import, and the runtime has to start fast

_LARGE = 2**24  # pixels: a tile may have as many, however small the image
_BILEVEL_WHITE, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_UNCOMPRESSED, _OLD_JPEG, _SIGNED, _SEPARATE, _REVERSED = 1, 6, 2, 2, 2
_PREVIEW, _MASK = 1, 4
# Modified Huffman, groups 3 and 4, LZW, both kinds of JPEG and of deflate, PackBits, LZMA, Zstandard.
_COMPRESSIONS = frozenset((_UNCOMPRESSED, 2, 3, 4, 5, _OLD_JPEG, 7, 8, 32773, 32946, 34925, 50000))


class _Tags:
    """The tags that decide on pixels, with the defaults that Pillow takes."""

    def __init__(self, image: TiffImageFile) -> None:
        self._tags: Any = image.tag_v2
        self.little = image.tag_v2.prefix == b"II"
        self.color, self.compression = self.number(262), self.number(259, 1)
        self.bits, self.form = max(self.numbers(258, 1)), max(self.numbers(339, 1))
        self.samples, self.extra = self.number(277, 1), self.numbers(338)
        self.uncompressed = self.compression == _UNCOMPRESSED

    def __contains__(self, tag: int) -> bool:
        return tag in self._tags

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        found = self._tags.get(tag, default)
        values = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(value, int) for value in values):
            raise ImageError("its header is damaged")
        return values

    def number(self, tag: int, default: int = 0) -> int:
        return next(iter(self.numbers(tag, default)), default)


def check_tiff(image: TiffImageFile, *, white_stated: bool) -> int | None:
    """Return the gray value that is white, where an opened TIFF states less than 16 bits; else None.

    ImageError is raised for tiles far larger than the image, and for forms of which Pillow makes other pixels
    than the file holds, measured with files of every form that it opens.
    """
    tags = _Tags(image)
    _check_tiles(image.size, tags)
    if (
        flaw := _find_flaw(tags)
        or _find_layout_flaw(tags)
        or _find_color_flaw(tags)
        or _find_number_flaw(tags, white_stated)
    ):
        raise ImageError(f"its pixels are {flaw}; convert it to 8 bits, gray or RGB")
    return 4095 if tags.bits == 12 else None


def _check_tiles(size: tuple[int, int], tags: _Tags) -> None:
    """Refuse tiles that take far more memory than the image: libtiff decodes whole tiles."""
    columns, rows = tags.number(322), tags.number(323)
    # Edges of tiles are multiples of 16.
    if columns * rows > max(_LARGE, (size[0] + 15) * (size[1] + 15)):
        found = f"it has tiles of {columns} x {rows} pixels for an image of {size[0]} x {size[1]}"
        raise ImageError(f"{found}; save it with tiles that are not larger than the image")


def _find_flaw(tags: _Tags) -> str | None:
    kind = tags.number(254)
    if kind & _PREVIEW:
        return "a preview of another image in the file (raw photos of cameras begin so)"
    if kind & _MASK:
        return "a mask of another image in the file"
    if 262 not in tags and tags.compression != _OLD_JPEG:
        return "of unknown colors (PhotometricInterpretation is missing)"
    if tags.compression not in _COMPRESSIONS:
        return f"compressed in a rare way (Compression {tags.compression})"
    return None


def _find_layout_flaw(tags: _Tags) -> str | None:
    """Return what is wrong with where the samples lie: of separate planes Pillow mistakes many."""
    if tags.number(284, 1) != _SEPARATE or tags.samples == 1:
        return None
    colors = {0: 1, 1: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}.get(tags.color, 0)
    rare = tags.samples != colors + len(tags.extra) or (colors == 1 and any(tags.extra))
    if rare or (tags.uncompressed and (tags.number(266, 1) == _REVERSED or tags.bits > 8)):
        return f"separate planes of a rare kind ({tags.samples} of {tags.bits} bits)"
    return None


def _find_color_flaw(tags: _Tags) -> str | None:
    if tags.color == _BILEVEL_WHITE and tags.bits > 8:
        return f"gray of {tags.bits} bits where 0 is white"
    if tags.color == _PALETTE and 0 < max(tags.numbers(320, 0)) < 256:
        return "colors of a palette of 8 bits, where TIFF has 16"
    if tags.color == _CMYK and tags.number(332, 1) != 1:
        return "inks other than CMYK"
    plain = tags.numbers(530, 2, 2) == (1, 1) and 529 not in tags and 532 not in tags
    if tags.color == _YCBCR and tags.uncompressed and tags.samples > 1 and not plain:
        return "YCbCr without compression, of a rare kind"
    return None


def _find_number_flaw(tags: _Tags, white_stated: bool) -> str | None:
    signed = "signed " if tags.form == _SIGNED else ""
    if tags.form not in (1, _SIGNED) or not (signed or tags.bits > 16):
        return None
    # libtiff gives them in the order of this machine, and Pillow turns those of the other order once more.
    if white_stated and tags.bits > 8 and (tags.little or tags.uncompressed):
        return None
    return f"{signed}integers of {tags.bits} bits, whose white is unknown"
