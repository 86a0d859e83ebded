"""Rest of an output that an interrupted run has left: whole lines, and an unfinished last one that is cut."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

from ..text import make_printable
from ..writing import OutputError
from .output import FIELDS, Format

_LOSABLE = 2**22  # bytes: more than is written between two syncs
_LONGEST = 2**26  # bytes of a line: more than the longest labels of a model file make
_SHOWN = 80  # bytes of a line that a message shows

_Paths = Generator[str, None, int]  # ends with the byte behind the last whole line


class _DamageError(Exception):
    """Something that no run of this command has written."""

    def __init__(self, at: int, found: str = "") -> None:
        super().__init__(found)
        self.at, self.found = at, found


def keep_whole_lines(path: Path, form: Format) -> Iterator[str]:
    """Yield the paths in the whole lines of an output file, then cut off a last line that is not finished.

    A crash leaves the start of a line at the end of the file, or the zero bytes that some file systems put
    there. An editor leaves a byte order mark and other ends of lines, which are read. Nothing else is
    understood, so nothing else is cut.

    Raises:
        OutputError: for what a crash does not leave, with the byte; the file is then as it was.
    """
    with path.open("r+b") as file:
        start = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(start)
        try:
            end = yield from (_read_csv if form == "csv" else _read_json_lines)(file, start)
            if file.seek(0, os.SEEK_END) - end > _LOSABLE:
                raise _DamageError(end)
        except _DamageError as error:
            expected = f"a {form} line with {','.join(FIELDS)}"
            raise OutputError(
                f"{path} is damaged at byte {error.at:,}: expected {expected}, found "
                f"{error.found or _found(file, error.at)}; undo what changed the file and resume, or use a "
                "new --output"
            ) from None
        file.truncate(end if end > start else 0)  # a mark alone would keep CSV from getting its first line
        os.fsync(file.fileno())


def _read_json_lines(file: IO[bytes], end: int) -> _Paths:
    while line := file.readline(_LONGEST):
        if not line.endswith(b"\n"):
            begun = line.rstrip(b"\0")
            # A line has no control characters; a \r in it is the end of a line in an old Mac's file.
            if begun and not (begun.startswith(b"{") and min(begun) >= 0x20):
                raise _DamageError(end)
            break
        yield _path_of(line, end)
        end += len(line)
    return end


def _path_of(line: bytes, at: int) -> str:
    try:
        values = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise _DamageError(at) from None
    if not isinstance(values, dict) or set(values) != set(FIELDS) or not _is_path(values["path"]):
        raise _DamageError(at)
    return str(values["path"])


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _read_csv(file: IO[bytes], end: int) -> _Paths:
    limit = csv.field_size_limit(_LONGEST)
    try:
        return (yield from _read_rows(file, end))
    finally:
        csv.field_size_limit(limit)


def _read_rows(file: IO[bytes], end: int) -> _Paths:
    taken, line, at_end = end, b"", False

    def lines() -> Iterator[str]:
        nonlocal taken, line, at_end
        while line := file.readline(_LONGEST):
            taken += len(line)
            # "\r" before zeros is the start of an end, which the csv module would call an error.
            text = line if line.endswith(b"\n") else line.rstrip(b"\0")
            yield text.decode("utf-8", "surrogateescape")
        at_end = True

    first, quoted = True, False
    rows = csv.reader(lines(), strict=True)
    try:
        for row in rows:
            if not line.endswith(b"\n"):
                break
            if (row != list(FIELDS)) if first else not _is_row(row):
                raise _DamageError(end)
            if not first:
                yield row[0]
            first, end = False, taken
    except csv.Error:
        if not at_end:
            raise _DamageError(end) from None
        quoted = True
    _check_begun(file, end, first=first, quoted=quoted)
    return end


def _is_row(row: list[str]) -> bool:
    return len(row) == len(FIELDS) and _is_path(row[0]) and not any("\0" in field for field in row)


def _check_begun(file: IO[bytes], end: int, *, first: bool, quoted: bool) -> None:
    """Refuse an end of a CSV file that is not the start of one line.

    Args:
        file: the file.
        end: where its last whole line ends.
        first: whether it has no whole line.
        quoted: whether it ends within quotes.
    """
    file.seek(end)
    begun = file.read(_LOSABLE).rstrip(b"\0")
    if first and not ",".join(FIELDS).encode().startswith(begun.rstrip(b"\r")):
        raise _DamageError(end)
    # A name may hold an end of a line, but no whole line: that is of an image, behind a quote too many.
    if quoted and any(map(_is_line, begun.splitlines()[1:])):
        raise _DamageError(end, "a quote that nothing closes")


def _is_line(text: bytes) -> bool:
    try:
        row = next(csv.reader([text.decode("utf-8", "surrogateescape")], strict=True))
    except (csv.Error, StopIteration):
        return False
    return _is_row(row) and (not row[2] or row[2].isdecimal())


def _found(file: IO[bytes], at: int) -> str:
    """Return the start of what stands at a byte, for a message."""
    file.seek(at)
    line = file.read(_SHOWN).partition(b"\n")[0].rstrip(b"\r")
    return (
        make_printable(line.decode("utf-8", "backslashreplace"), longest=_SHOWN)
        if line.strip()
        else "an empty line"
    )
