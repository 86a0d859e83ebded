"""JPEG: the number of scans, and colors that the file leaves open."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING

from ..errors import ImageError

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile  # slow to import, and the runtime has to start fast

MAX_SCANS = 100  # each passes over all blocks of the image; honest files have 10 to 20, libtiff takes as many
_BLOCK = 2**16
_SOS, _EOI = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
# Neither a stuffed byte, nor a restart within a scan, nor the first of several FF.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def check_jpeg(image: JpegImageFile, file: IO[bytes]) -> None:
    """Check a JPEG whose header is read: its scans are few, and its colors are known.

    Args:
        image: an opened JPEG or MPO.
        file: the file; is left anywhere.

    Raises:
        ImageError: for thousands of scans, which keep a processor busy for hours; for CMYK without Adobe's
            marker, which may be stored inverted or not.
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
    while scans <= MAX_SCANS and (marker := next_marker(file)) not in (None, _EOI):
        if marker in _ALONE:
            continue
        length = int.from_bytes(file.read(2), "big")
        scans += marker == _SOS
        if length < 2:
            break
        file.seek(length - 2, 1)
    return scans


def next_marker(file: IO[bytes]) -> int | None:
    """Read up to the next marker and through it; None at the end of the file."""
    at = file.tell()
    while len(block := file.read(_BLOCK)) > 1:
        if found := _MARKER.search(block):
            file.seek(at + found.end())
            return block[found.end() - 1]
        at += len(block) - 1  # its last byte may begin a marker
        file.seek(at)
    return None
