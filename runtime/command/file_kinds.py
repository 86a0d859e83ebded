"""Kinds of files by their first bytes, for messages about a file of another kind than expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from ..errors import InputError

_Binary = Literal["image", "onnx", "safetensors", "zip", "archive", "array", "pickle", "others"]
_Other = Literal["page", "pointer", "text", "empty", "folder", "missing", "device", "unknown"]
Kind = _Binary | _Other

# Kinds that hold no weights of a model; pages, pointers and archives have messages of their own.
NO_WEIGHTS: tuple[Kind, ...] = ("image", "onnx", "text", "empty", "device")
_HEAD = 512  # bytes that are read
# Kind and words of a file that begins so.
_BEGINNINGS: tuple[tuple[bytes | tuple[bytes, ...], Kind, str], ...] = (
    (b"\xff\xd8\xff", "image", "a JPEG image"),
    (b"\x89PNG", "image", "a PNG image"),
    (b"GIF8", "image", "a GIF image"),
    (b"BM", "image", "a BMP image"),
    ((b"II*\0", b"MM\0*"), "image", "a TIFF image"),
    (b"\0\0\0\x0cjP  ", "image", "a JPEG 2000 image"),
    (b"\0\0\x01\0", "image", "an ICO image"),
    (tuple(b"P%d%c" % (number, end) for number in range(1, 7) for end in b"\n "), "image", "a Netpbm image"),
    (b"#define", "image", "an XBM image"),
    (b"Image type:", "image", "an IM image"),
    (b"/* XPM", "image", "an XPM image"),
    (b"PK\x03\x04", "zip", "a ZIP archive"),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), "archive", "a compressed archive"),
    (b"7z\xbc\xaf", "archive", "a 7z archive"),
    (b"Rar!", "archive", "a RAR archive"),
    (b"\x93NUMPY", "array", "an array of NumPy"),
    (b"\x80\x02", "pickle", "a pickle of Python"),
    (b"%PDF", "others", "a PDF"),
    (b"version https://git-lfs", "pointer", "a Git LFS pointer, not the file itself (run git lfs pull)"),
    (b"\x89HDF", "others", "an HDF5 file (Keras or TensorFlow)"),
    (b"GGUF", "others", "a GGUF file (llama.cpp)"),
)


def detect_file_kind(path: Path | str) -> tuple[Kind, str]:
    """Return the kind of a file or folder.

    Args:
        path: need not exist; only plain files are opened.

    Returns:
        the kind, and the same in words for a message.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (Path.stat is this)
        if stat.S_ISDIR(mode):
            return _folder(Path(path))
        if not stat.S_ISREG(mode):
            return "device", "a device or a pipe"
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return "missing", "nothing"
    except OSError:
        return "unknown", "a file that cannot be read"
    return _file(head, size)


def refuse_kinds(path: Path | str, kinds: Collection[Kind], expected: str, advice: str) -> None:
    """Refuse a file or folder of certain kinds, before it is read.

    Args:
        path: of the file.
        kinds: those that cannot be what is expected.
        expected: what belongs there.
        advice: what to do.

    Raises:
        InputError: saying what was expected, what was found and what to do.
    """
    kind, words = detect_file_kind(path)
    if kind in kinds:
        raise InputError(f"{path}: expected {expected}, found {words}; {advice}")


def _file(head: bytes, size: int) -> tuple[Kind, str]:
    if not head:
        return "empty", "an empty file"
    for beginning, kind, words in _BEGINNINGS:
        if head.startswith(beginning):
            return kind, words
    if head[4:8] == b"ftyp" or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return "image", "a WebP image" if head.startswith(b"RIFF") else "an image or film (HEIF, AVIF, MP4)"
    # The header of safetensors: its length in 8 bytes, then JSON.
    if 2 <= int.from_bytes(head[:8], "little") <= size and head[8:9] == b"{":
        return "safetensors", "a safetensors file"
    # The version of ONNX comes first, then the producer, the graph or another field.
    if head[0] == 0x08 and 0 < head[1] < 0x20 and len(head) > 2 and head[2] & 7 in (0, 2):
        return "onnx", "an ONNX model"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "page", "a web page"
    return _text(head)


def _text(head: bytes) -> tuple[Kind, str]:
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return "unknown", "a file of an unknown kind"
    return "text", "JSON" if text.lstrip()[:1] in ("{", "[") else "text"


def _folder(path: Path) -> tuple[Kind, str]:
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except OSError:
        return "folder", "a folder that cannot be listed"
    return "folder", "an empty folder" if empty else "a folder"
