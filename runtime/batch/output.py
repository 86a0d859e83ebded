"""One line per image, as JSON Lines or CSV, in a file or on standard output."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal

from ..results import Result
from ..text import escape_controls

Format = Literal["jsonl", "csv"]
FIELDS = ("path", "label", "index", "score", "top", "error")
_SYNC_EVERY = 2.0  # seconds: what a power cut can cost


def format_of(path: Path | None) -> Format:
    """CSV for a file of that name, JSON Lines otherwise."""
    return "csv" if path is not None and path.suffix.lower() == ".csv" else "jsonl"


def record(result: Result[Any]) -> dict[str, Any]:
    """The fields of one line. Without a prediction all but `path` and `error` are null."""
    values: dict[str, Any] = dict.fromkeys(FIELDS) | {"path": str(result.image), "error": result.error}
    return values if result.prediction is None else values | asdict(result.prediction)


def to_line(values: dict[str, Any], form: Format, *, kept: bool = True) -> bytes:
    """Return one record as a line; what a terminal would obey, and not just show, is escaped.

    JSON says the same with its escapes. CSV has none: a label is exact in `top`, which is JSON, and by its
    `index`. Only a path is needed as it is, in a file, where a run is resumed and images are found by it.

    Args:
        values: by the names of `FIELDS`.
        form: of the line.
        kept: whether it goes to a file.
    """
    if form == "csv":
        shown = {name: escape_controls(x) if isinstance(x, str) else x for name, x in values.items()}
        shown["top"] = values["top"] and _json(values["top"])
        shown["path"] = values["path"] if kept else shown["path"]
        return _csv_line([shown[name] for name in FIELDS])
    return (_json(values) + "\n").encode()


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


class Lines:
    """Where the lines go: each flushed, and in a file synced to the disk every two seconds.

    Args:
        file: open for writing, at its end.
        form: how a line is written; CSV begins with the names of the fields.
        kept: whether it is a plain file; a device, a pipe or standard output keeps nothing to sync.
    """

    def __init__(self, file: IO[bytes], form: Format, *, kept: bool) -> None:
        self._file, self._form, self._kept = file, form, kept
        self._synced = time.monotonic()
        if form == "csv" and not (kept and os.fstat(file.fileno()).st_size):
            self._write(_csv_line(list(FIELDS)))

    def write(self, result: Result[Path]) -> None:
        """Append the line of one result."""
        self._write(to_line(record(result), self._form, kept=self._kept))
        if self._kept and time.monotonic() - self._synced > _SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file; standard output stays open."""
        if self._kept:
            os.fsync(self._file.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Close after an error, which syncing would only repeat."""
        if sys.stdout is None or self._file is not sys.stdout.buffer:
            with suppress(OSError):
                self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def _csv_line(values: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # what is in it gets quoted: both of them
    return line.getvalue().encode("utf-8", "surrogateescape")
