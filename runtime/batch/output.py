"""One line an image, as JSON Lines or CSV, in a file that survives a crash or on standard output."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ..results import Result
from ..writing import OutputError, explained_output

Format = Literal["jsonl", "csv"]
FIELDS = ("path", "label", "index", "score", "top", "error")
_SYNC_EVERY = 2.0  # seconds: what a power cut can cost
_LOSABLE = 2**22  # bytes: more than is written between two syncs


def format_of(path: Path | None) -> Format:
    """CSV for a file of that name, JSON Lines otherwise."""
    return "csv" if path is not None and path.suffix.lower() == ".csv" else "jsonl"


def record(result: Result[Any]) -> dict[str, Any]:
    """The fields of one line. Without a prediction all but `path` and `error` are null."""
    values: dict[str, Any] = dict.fromkeys(FIELDS) | {"path": str(result.image), "error": result.error}
    return values if result.prediction is None else values | asdict(result.prediction)


def to_line(values: dict[str, Any], form: Format) -> bytes:
    """One record as a line; JSON escapes what a terminal would not just show."""
    if form == "csv":
        top = values["top"] and json.dumps(values["top"], ensure_ascii=False)
        return _csv_line([top if name == "top" else values[name] for name in FIELDS])
    text = json.dumps(values, ensure_ascii=False)
    return ((text if text.isprintable() else json.dumps(values)) + "\n").encode()


class Lines:
    """Where the lines go: appended, each flushed, and synced to the disk every two seconds."""

    def __init__(self, path: Path | None, form: Format) -> None:
        self._form = form
        self._owned = path is not None  # standard output stays open
        self._kept = path is not None and is_regular(path)  # a device or a pipe keeps nothing to sync
        self._file: IO[bytes] = sys.stdout.buffer if path is None else path.open("ab" if self._kept else "wb")
        self._synced = time.monotonic()
        if form == "csv" and (path is None or not self._kept or path.stat().st_size == 0):
            self._write(_csv_line(list(FIELDS)))

    def write(self, result: Result[Path]) -> None:
        self._write(to_line(record(result), self._form))
        if self._kept and time.monotonic() - self._synced > _SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        self._file.flush()
        if self._kept:
            os.fsync(self._file.fileno())
        if self._owned:
            self._file.close()

    def abandon(self) -> None:
        """Close after an error, which closing would only repeat."""
        if self._owned:
            with suppress(OSError):
                self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


class Done:
    """The images that an interrupted run has dealt with, in 16 bytes each."""

    def __init__(self, paths: Iterator[str]) -> None:
        keys = np.frombuffer(array("Q", map(_key, paths)), np.uint64)
        self._keys, self._left = np.unique(keys, return_counts=True)

    def take(self, path: Path | str) -> bool:
        """Return whether the image is done; an image that is listed twice is done after two calls."""
        key = _key(str(path))
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        if at == len(self._keys) or self._keys[at] != key or self._left[at] == 0:
            return False
        self._left[at] -= 1
        return True


def is_regular(path: Path) -> bool:
    """Return whether `path` is, or can become, a plain file; a device or a pipe cannot be resumed."""
    return not path.exists() or path.is_file()


def begin(path: Path, model: str, *, resume: bool, overwrite: bool) -> Done:
    """Make `path` ready to be appended to, and say what it holds already.

    Beside it stands `<path>.run`, which names the model, so that no file mixes the answers of two.

    Args:
        path: the output file.
        model: the SHA-256 of the model file.
        resume: go on with the output that is there.
        overwrite: replace the output that is there.

    Raises:
        OutputError: when it exists and neither `resume` nor `overwrite` is said, when another model wrote it,
            or when it cannot be written.
    """
    with explained_output(path):
        return _begin(path, model, resume=resume, overwrite=overwrite)


def _begin(path: Path, model: str, *, resume: bool, overwrite: bool) -> Done:
    if path.is_dir():
        raise OutputError(f"{path}: expected a file to write to, found a folder; give a file name")
    if not is_regular(path):  # /dev/null, a pipe: written to as it is, nothing stands beside it
        if resume:
            raise OutputError(f"{path} is no plain file and keeps nothing; leave --resume out")
        return Done(iter(()))
    note = path.with_name(path.name + ".run")
    if resume and path.exists() and path.stat().st_size:
        _expect_same_model(note, path, model)
        return Done(_keep_whole_lines(path))
    if path.exists() and path.stat().st_size and not overwrite:
        raise OutputError(f"{path} is there already: --resume goes on with it, --overwrite begins anew")
    path.write_bytes(b"")
    aside = note.with_name(note.name + ".tmp")
    aside.write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")
    aside.replace(note)
    return Done(iter(()))


def _expect_same_model(note: Path, path: Path, model: str) -> None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{note} is gone or damaged, so {path} cannot be resumed; --overwrite begins anew"
        ) from None
    if found != model:
        raise OutputError(
            f"another model wrote {path} (SHA-256 {found}, this one {model}); use a new --output"
        )


def _keep_whole_lines(path: Path) -> Iterator[str]:
    """The paths in the whole lines of an output file, which then ends after the last of them.

    Raises:
        OutputError: when what is not whole is more than an interrupted run leaves.
    """
    read = _read_csv if format_of(path) == "csv" else _read_json_lines
    end = 0
    with path.open("r+b") as file:
        for found, whole in read(file):
            end = whole
            if found is not None:
                yield found
        if path.stat().st_size - end > _LOSABLE:
            raise OutputError(f"{path} is damaged at byte {end:,}: repair it, or use a new --output")
        file.truncate(end)
        os.fsync(file.fileno())


def _read_json_lines(file: IO[bytes]) -> Iterator[tuple[str | None, int]]:
    end = 0
    for line in file:
        try:
            found = json.loads(line)["path"] if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            return
        if not isinstance(found, str):
            return
        end += len(line)
        yield found, end


def _read_csv(file: IO[bytes]) -> Iterator[tuple[str | None, int]]:
    taken, line = 0, b""

    def lines() -> Iterator[str]:
        nonlocal taken, line
        for line in file:
            taken += len(line)
            yield line.decode("utf-8", "surrogateescape")

    try:
        for number, row in enumerate(csv.reader(lines(), strict=True)):
            if len(row) != len(FIELDS) or not line.endswith(b"\n"):
                return
            yield (row[0] if number else None), taken
    except csv.Error:  # the file ends within quotes, or holds zero bytes
        return


def _csv_line(values: list[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # what is in it gets quoted: both of them
    return line.getvalue().encode("utf-8", "surrogateescape")


def _key(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
