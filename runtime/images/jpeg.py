"""JPEG and JPEG 2000: limits on scans, segments and tiles, and forms whose colors are not certain."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING

from PIL import Image

from ..errors import ImageError, describe_pixel_limit

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile  # slow to import, and the runtime has to start fast

MAX_SCANS = 100  # each passes over all blocks of the image; real files have 10 to 20; libtiff has this limit
_MAX_PADDING = _BLOCK = 2**16  # bytes between segments
_SOS, _EOI = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
# Neither a stuffed byte, nor a restart within a scan, nor the first of several FF.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def check_jpeg(image: JpegImageFile, file: IO[bytes]) -> None:
    """Refuse an opened JPEG or MPO of thousands of scans, or uncertain colors; the file's position changes.

    So many scans keep a processor busy for hours. CMYK without Adobe's marker may be inverted or not.
    """
    if image.layers == 4 and "adobe_transform" not in image.info:
        raise ImageError("it is CMYK without Adobe's marker, so it may be a negative; convert it to RGB")
    single = 6 + 2 * image.layers  # length of the header of a scan of every color
    several = bool(image.info.get("progressive"))
    at = file.tell() - single - 2
    if not several and at > 0:  # where Pillow stops reading: behind the header of the first scan
        file.seek(at)
        if file.read(5) == bytes((0xFF, _SOS, 0, single, image.layers)):
            return  # libjpeg takes no second scan after one of every color
    if count_scans(file) > MAX_SCANS:
        raise ImageError(f"it has more than {MAX_SCANS} scans (usual: 10 to 20); save it again as JPEG")


def count_scans(file: IO[bytes]) -> int:
    """Count the scans of a JPEG from its start to its end; one more than `MAX_SCANS` stands for any more.

    Thumbnails in its segments and what follows its end do not count.
    """
    file.seek(2)
    scans = 0
    while scans <= MAX_SCANS and (marker := _read_marker(file)) not in (None, _EOI):
        if marker in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big")
        scans += marker == _SOS
        if length < 2:
            break
        file.seek(length - 2, 1)
    return scans


def read_segments(file: IO[bytes]) -> Iterator[int]:
    """Yield the markers of a JPEG up to its first scan.

    Raises:
        ImageError: for many bytes between two segments, which Pillow reads one by one.
    """
    file.seek(2)
    padding, at = 0, 2
    while (marker := _read_marker(file)) is not None:
        yield marker
        padding += file.tell() - 2 - at
        if padding > _MAX_PADDING:
            raise ImageError(f"it has more than {_MAX_PADDING:,} bytes between its segments; save it again")
        if marker == _SOS:
            return
        file.seek(max(int.from_bytes(file.read(2), "big") - 2, 0), 1)
        at = file.tell()


def _read_marker(file: IO[bytes]) -> int | None:
    """Read through the next marker and return it; None at the end of the file."""
    at = file.tell()
    while len(block := file.read(_BLOCK)) > 1:
        if found := _MARKER.search(block):
            file.seek(at + found.end())
            return block[found.end() - 1]
        at += len(block) - 1  # its last byte may begin a marker
        file.seek(at)
    return None


# --- JPEG 2000 ---

_CODESTREAM = b"\xff\x4f\xff\x51"
_SMALL = 2**24  # samples of a tile that are taken whatever the limit
_MOST_BOXES = 1000
_MOST_TILES = 2**12  # OpenJPEG takes 12 kB for each before it reads one
_COLORS = {16: 3, 17: 1, 18: 3}  # sRGB, gray and sYCC: their channels
_PROFILES = {b"GRAY": 1, b"RGB ": 3}


def check_jpeg2000(image: Image.Image, file: IO[bytes], max_pixels: int) -> int:
    """Return the bits per sample of an opened JPEG 2000, whose forms that Pillow mistakes are refused.

    OpenJPEG holds a tile in 32 bits per sample: each counts as a pixel for `max_pixels`. The file's position
    changes.
    """
    boxes = _read_boxes(file)
    file.seek(boxes[b"jp2c"][0] if boxes else 0)
    siz = file.read(42)
    if not siz.startswith(_CODESTREAM) or len(siz) < 42:
        raise ImageError("its header is damaged")
    right, bottom, left, top, columns, rows, *first = struct.unpack(">8I", siz[8:40])
    count = int.from_bytes(siz[40:], "big")
    samples = min(columns, max(right - left, 0)) * min(rows, max(bottom - top, 0)) * count
    tiles = -(-max(right - first[0], 0) // max(columns, 1)) * -(-max(bottom - first[1], 0) // max(rows, 1))
    if tiles > _MOST_TILES:
        raise ImageError(f"it has {tiles:,} tiles (limit: {_MOST_TILES:,}); save it with larger ones")
    if samples > max(max_pixels, _SMALL):
        raise ImageError(f"its tiles have {samples:,} samples, more than {describe_pixel_limit(max_pixels)}")
    parts = file.read(3 * count)
    depth = parts[0] + 1 if parts else 0  # above 128: signed
    if (
        parts != bytes((depth - 1, 1, 1)) * count
        or not 8 <= depth <= 16
        or not _are_known(image, boxes, count)
    ):
        raise ImageError("it is JPEG 2000 of a rare kind (colors, bits or channels); convert it to PNG")
    return depth


def _are_known(image: Image.Image, boxes: dict[bytes, tuple[int, bytes]], count: int) -> bool:
    """Return whether the channels are gray or RGB, with or without alpha, in this order."""
    if not boxes:
        return count in (1, 3)
    if b"pclr" in boxes:
        return image.mode == "P" and boxes[b"pclr"][1][2:3] == b"\3"
    alpha = count in (2, 4)
    order = b"".join(struct.pack(">HHH", i, 0, i + 1) for i in range(count - alpha))
    order += struct.pack(">HHH", count - 1, 1, 0) if alpha else b""
    defined = boxes[b"cdef"][1][2:] if b"cdef" in boxes else b"" if alpha else order
    color = boxes.get(b"colr", (0, b""))[1]
    if color[:1] == b"\1":
        colors = _COLORS.get(int.from_bytes(color[3:7], "big"))
    else:  # an ICC profile, which follows three bytes and states its colors at its byte 16
        colors = _PROFILES.get(color[19:23])
    return defined == order and colors == count - alpha


def _read_boxes(file: IO[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """Return where the data of each kind of box begin, and their first bytes; nothing for a bare codestream.

    Of several boxes of a kind the first one counts.
    """
    from .avif import read_boxes  # the container is that of AVIF

    file.seek(0)
    if file.read(4) == _CODESTREAM:
        return {}
    found: dict[bytes, tuple[int, bytes]] = {}
    for kind, at, end in islice(read_boxes(file, 0, file.seek(0, 2)), _MOST_BOXES):
        file.seek(at)
        found.setdefault(kind, (at, file.read(min(64, end - at))))
        if kind == b"jp2c":
            return found
    raise ImageError("its header is damaged")
