"""Images named on the command line: files, folders, and lists of paths on standard input."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..images.find_images import LeftOut, find_images, left_out_line
from .options import RunOptions, UsageError

ALL_FILES = "--all-files tries each as an image"


def named_images(options: RunOptions, left_out: LeftOut | None = None) -> Iterator[Path]:
    """Yield the images that the options of `python -m runtime` name, in their order.

    Args:
        options: of `python -m runtime`.
        left_out: counts the files in folders that are not among them.
    """
    for given in options.images:
        named: Iterable[Path] = _standard_input(options.null) if given == "-" else [Path(given)]
        yield from find_images(named, skip=options.sort_into, all_files=options.all_files, left_out=left_out)


def no_images(named: Iterable[str], counts: Mapping[str, int]) -> str:
    """Return the message for a run that has found no image.

    Args:
        named: what the user gave.
        counts: of what the walk left out.
    """
    line = left_out_line(counts)
    return f"no images in {', '.join(named)}" + (f"; {line}; {ALL_FILES}" if line else "")


def _standard_input(null: bool) -> Iterator[Path]:
    """Yield the paths on standard input, one per line, or each ended by a zero byte."""
    for number, name in enumerate(_pieces(b"\0" if null else b"\n")):
        if not null:  # Windows ends lines with CR LF, and its editors begin a file with a byte order mark
            name = (name.removeprefix(codecs.BOM_UTF8) if number == 0 else name).removesuffix(b"\r")
        if name:
            yield Path(os.fsdecode(name))


def _pieces(end: bytes) -> Iterator[bytes]:
    """Yield the bytes of standard input between `end`s, as they come."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; expected paths on it, as - says")
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 2**16):
        if end == b"\n" and b"\0" in chunk:
            raise UsageError("standard input has zero bytes between the paths: add --null")
        *names, rest = (rest + chunk).split(end)
        yield from names
    yield rest
