"""Images named on the command line (files, folders, paths on standard input), and options refused there."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..images.find_images import SkippedFiles, describe_skipped, find_images
from .options import RunOptions, UsageError
from .tally import ALL_FILES


def list_images(
    sources: Iterable[str],
    *,
    null: bool = False,
    skip: Path | None = None,
    all_files: bool = False,
    left_out: SkippedFiles | None = None,
) -> Iterator[Path]:
    """Yield the images of all sources, in their order; "-" stands for the paths on standard input.

    Those end in zero bytes with `null`, else in newlines. The others are arguments of `find_images`.
    """
    for source in sources:
        paths = _read_standard_input(null) if source == "-" else [Path(source)]
        yield from find_images(paths, skip=skip, all_files=all_files, skipped=left_out)


def no_images(sources: Iterable[str], counts: Mapping[str, int]) -> UsageError:
    """Return the error of a run that has found no image in its sources, given what was left out."""
    line = describe_skipped(counts)
    return UsageError(f"no images in {', '.join(sources)}" + (f"; {line}; {ALL_FILES}" if line else ""))


def refuse_options(options: RunOptions, names: Iterable[str], where: str) -> None:
    """Raise a UsageError if one of these options (with underscores) was given beside `where`, another one."""
    # 0 is a value that was given, though it equals False.
    given = [name for name in names if not any(getattr(options, name) is unset for unset in (None, False))]
    if given:
        shown = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{shown}: not possible with {where}")


def _read_standard_input(null: bool) -> Iterator[Path]:
    for number, name in enumerate(_split_standard_input(b"\0" if null else b"\n")):
        if not null:  # Windows ends lines with CR LF, and its editors begin a file with a byte order mark
            name = (name.removeprefix(codecs.BOM_UTF8) if number == 0 else name).removesuffix(b"\r")
        if name:
            yield Path(os.fsdecode(name))


def _split_standard_input(end: bytes) -> Iterator[bytes]:
    """Yield the bytes of standard input between `end`s, as they arrive."""
    if sys.stdin is None:
        raise UsageError("standard input is closed; expected paths on it, as - says")
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 2**16):
        if end == b"\n" and b"\0" in chunk:
            raise UsageError("standard input has zero bytes between the paths: add --null")
        *names, rest = (rest + chunk).split(end)
        yield from names
    yield rest
