"""Result lines in a file: written, synced, and resumed after a crash; one run at a time writes a file."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np

from ..command.locking import busy_output_error, warn_no_locks
from ..results import Result
from ..text import escape_controls, make_printable
from ..writing import OutputError, explain_output_errors, lock_file, write_atomically
from .tally import Report

Format = Literal["jsonl", "csv"]
T = TypeVar("T")
FIELDS = ("path", "label", "index", "score", "top", "error")
SEVERAL_FIELDS = ("path", "labels", "top", "error")  # of a model with several labels per image
_SYNC_EVERY = 2.0  # seconds: what a power cut can cost
_LOSABLE = 2**22  # bytes: more than is written between two syncs
_LONGEST = 2**26  # bytes of a line: more than the longest labels of a model file need
_SHOWN = 80  # bytes of a line that a message shows

# --- One line per image ---


def choose_output_format(path: Path | None) -> Format:
    """Return CSV for a file of that name, JSON Lines for any other and for standard output."""
    return "csv" if path is not None and path.suffix.lower() == ".csv" else "jsonl"


def format_record(result: Result[Any], fields: Sequence[str] = FIELDS) -> dict[str, Any]:
    """Return the fields of one line. Without a prediction all but `path` and `error` are None."""
    values: dict[str, Any] = dict.fromkeys(fields) | {"path": str(result.image), "error": result.error}
    found = {} if result.prediction is None else asdict(result.prediction)
    return values | {name: value for name, value in found.items() if name in values}


def format_line(values: Mapping[str, Any], form: Format, *, to_file: bool = True) -> bytes:
    """Return one record as a line in which characters that a terminal would obey are escaped.

    JSON has its own escapes. CSV has none: a label is exact in `top` and `labels`, which are JSON, and by its
    `index`. In a file the path stays as it is, since a run is resumed and images are found by it.
    """
    if form == "jsonl":
        return (_to_json(values) + "\n").encode()
    shown = {name: escape_controls(x) if isinstance(x, str) else x for name, x in values.items()}
    for name in {"top", "labels"} & values.keys():
        shown[name] = None if values[name] is None else _to_json(values[name])
    shown["path"] = values["path"] if to_file else shown["path"]
    return _to_csv_line(list(shown.values()))


def _to_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _to_csv_line(values: list[Any]) -> bytes:
    line = io.StringIO()
    # The csv module quotes a value in which either character of this end occurs.
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue().encode("utf-8", "surrogateescape")


class Lines:
    """Result lines on their way out: each is flushed, and a file is synced to the disk every two seconds.

    The file is open for writing, at its end; with `to_file` it is plain, so that there is something to sync.
    CSV begins with the names of the fields.
    """

    def __init__(
        self, file: IO[bytes], form: Format, *, to_file: bool, fields: Sequence[str] = FIELDS
    ) -> None:
        self._file, self._form, self._to_file, self._fields = file, form, to_file, fields
        self._synced = time.monotonic()
        if form == "csv" and not (to_file and os.fstat(file.fileno()).st_size):
            self._write(_to_csv_line(list(fields)))

    def write(self, result: Result[Path]) -> None:
        """Append the line of one result."""
        self._write(format_line(format_record(result, self._fields), self._form, to_file=self._to_file))
        if self._to_file and time.monotonic() - self._synced > _SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file; standard output stays open."""
        if self._to_file:
            os.fsync(self._file.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Close the file after an error, which syncing would only repeat."""
        if sys.stdout is None or self._file is not sys.stdout.buffer:
            with suppress(OSError):
                self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


# --- An output that is begun or resumed ---


class DoneImages:
    """The images that earlier runs have written, in 16 bytes each; a path may occur several times."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        hashes = np.frombuffer(array("Q", map(_hash_path, paths)), np.uint64)
        self._hashes, self._left = np.unique(hashes, return_counts=True)

    def take(self, path: Path | str) -> bool:
        """Return whether the image is done; an image that is listed twice is done after two calls."""
        key = _hash_path(str(path))
        at = int(np.searchsorted(self._hashes, np.uint64(key)))
        if at == len(self._hashes) or self._hashes[at] != key or self._left[at] == 0:
            return False
        self._left[at] -= 1
        return True

    def skip(self, images: Iterable[T], report: Report, path_of: Callable[[T], str] = str) -> Iterator[T]:
        """Yield the images that are not done, and count others; `path_of` names one as the output does."""
        for image in images:
            if self.take(path_of(image)):
                report.skipped += 1
            else:
                yield image


def open_output(
    path: Path | None,
    form: Format,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    fields: Sequence[str] = FIELDS,
) -> tuple[Lines, DoneImages]:
    """Open an output, None for standard output, and return with it the images that it holds already.

    `<path>.run` beside the file holds the settings, so that no file mixes the answers of two models, or lines
    of two kinds: what a line depends on, as JSON values, `model` (the SHA-256 of the model file) and options
    by their names. Only one run at a time writes a file, where the disk has locks.

    Raises:
        OutputError: if it exists and neither `resume` nor `overwrite` is set, was written with other settings
            or by another program, is being written by another run, or cannot be written.
    """
    if path is None:
        return Lines(sys.stdout.buffer, form, to_file=False, fields=fields), DoneImages()
    with explain_output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path}: expected a file to write to, found a folder; give a file name")
        if path.exists() and not is_resumable(path):
            if resume:
                raise OutputError(f"{path} is no plain file and keeps nothing; leave --resume out")
            return Lines(path.open("ab"), form, to_file=False, fields=fields), DoneImages()
        file = path.open("ab")
        try:
            _lock(file, path)
            settings = {**settings, "format": form}
            done = _begin(file, path, settings, fields, resume=resume, overwrite=overwrite)
            return Lines(file, form, to_file=True, fields=fields), done
        except BaseException:
            file.close()
            raise


def is_resumable(path: Path) -> bool:
    """Return whether a path is a plain file, which can be resumed and has room for `<path>.run` beside it.

    /dev/null and a pipe are not; /dev/stdout is not either, wherever it leads.
    """
    return path.is_file() and path.absolute().parent not in (Path("/dev"), Path("/dev/fd"))


def _begin(
    file: IO[bytes],
    path: Path,
    settings: Mapping[str, Any],
    fields: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
) -> DoneImages:
    note = path.with_name(path.name + ".run")
    if resume and path.stat().st_size:
        _expect_same(note, path, settings)
        return DoneImages(_keep_whole_lines(path, settings["format"], fields))
    if path.stat().st_size and not overwrite:
        raise OutputError(f"{path} is there already: --resume continues it, --overwrite begins anew")
    file.truncate(0)
    os.fsync(file.fileno())  # before the note: after a power cut it must not vouch for the old lines
    write_atomically(note, (json.dumps(settings) + "\n").encode())
    return DoneImages()


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        locked = lock_file(file.fileno())
    except BlockingIOError:
        raise busy_output_error(path) from None
    if not locked:
        warn_no_locks(path)


def _expect_same(note: Path, path: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
        found = {name: before[name] for name in settings}
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{note} is gone or damaged, so {path} cannot be resumed; --overwrite begins anew"
        ) from None
    check_settings(found, settings, path)


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], output: Path | str) -> None:
    """Raise an OutputError if the lines of an output were written with another model or other options."""
    if before["model"] != now["model"]:
        raise OutputError(
            f"another model wrote {output} (SHA-256 {before['model']}, this one {now['model']}); "
            "use a new --output"
        )
    for name, value in now.items():
        if before[name] != value:
            was, found = ("not given" if each is None else str(each) for each in (before[name], value))
            raise OutputError(
                f"{output} was written with --{name.replace('_', '-')} {was}, found {found}; type the same, "
                "or use a new --output"
            )


def _hash_path(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


# --- What an interrupted run has left: whole lines, and an unfinished last one that is cut off ---

_Paths = Generator[str, None, int]  # returns the byte behind the last whole line


class _DamageError(Exception):
    """Something that no run of this command has written."""

    def __init__(self, at: int, found: str = "") -> None:
        super().__init__(found)
        self.at, self.found = at, found


def _keep_whole_lines(path: Path, form: Format, fields: Sequence[str]) -> Iterator[str]:
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
            end = yield from (_read_csv if form == "csv" else _read_json_lines)(file, start, fields)
            if file.seek(0, os.SEEK_END) - end > _LOSABLE:
                raise _DamageError(end)
        except _DamageError as error:
            found = error.found or _quote_line(file, error.at)
            raise OutputError(
                f"{path} is damaged at byte {error.at:,}: expected a {form} line with {','.join(fields)}, "
                f"found {found}; undo what changed the file and resume, or use a new --output"
            ) from None
        file.truncate(end if end > start else 0)  # a mark alone would keep CSV from getting its first line
        os.fsync(file.fileno())


def _read_json_lines(file: IO[bytes], end: int, fields: Sequence[str]) -> _Paths:
    while line := file.readline(_LONGEST):
        if not line.endswith(b"\n"):
            begun = line.rstrip(b"\0")
            # A line has no control characters; a \r in it is the end of a line in an old Mac's file.
            if begun and not (begun.startswith(b"{") and min(begun) >= 0x20):
                raise _DamageError(end)
            break
        try:
            values = json.loads(line.decode())
        except (ValueError, RecursionError):
            raise _DamageError(end) from None
        if not isinstance(values, dict) or set(values) != set(fields) or not _is_path(values["path"]):
            raise _DamageError(end)
        yield values["path"]
        end += len(line)
    return end


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _read_csv(file: IO[bytes], end: int, fields: Sequence[str]) -> _Paths:
    csv.field_size_limit(_LONGEST)  # of this process; 131,072 otherwise
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
            if (row != list(fields)) if first else not _is_row(row, fields):
                raise _DamageError(end)
            if not first:
                yield row[0]
            first, end = False, taken
    except csv.Error:
        if not at_end:
            raise _DamageError(end) from None
        quoted = True
    _check_unfinished(file, end, fields, first=first, quoted=quoted)
    return end


def _is_row(row: list[str], fields: Sequence[str]) -> bool:
    return len(row) == len(fields) and _is_path(row[0]) and not any("\0" in field for field in row)


def _check_unfinished(file: IO[bytes], end: int, fields: Sequence[str], *, first: bool, quoted: bool) -> None:
    """Refuse an end of a CSV file, behind its last whole line, that is not the start of one line."""
    file.seek(end)
    begun = file.read(_LOSABLE).rstrip(b"\0")
    if first and not ",".join(fields).encode().startswith(begun.rstrip(b"\r")):
        raise _DamageError(end)
    # A name may hold an end of a line, but no whole line: that is of an image, behind a quote too many.
    if quoted and any(_is_line(line, fields) for line in begun.splitlines()[1:]):
        raise _DamageError(end, "a quote that nothing closes")


def _is_line(text: bytes, fields: Sequence[str]) -> bool:
    try:
        row = next(csv.reader([text.decode("utf-8", "surrogateescape")], strict=True))
    except (csv.Error, StopIteration):
        return False
    return _is_row(row, fields) and (fields[2] != "index" or not row[2] or row[2].isdecimal())


def _quote_line(file: IO[bytes], at: int) -> str:
    file.seek(at)
    line = file.read(_SHOWN).partition(b"\n")[0].rstrip(b"\r")
    text = make_printable(line.decode("utf-8", "backslashreplace"), longest=_SHOWN)
    return text if line.strip() else "an empty line"
