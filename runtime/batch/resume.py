"""A file of result lines that survives a crash: begun, gone on with, and written by one run at a time."""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..command.locking import being_written, warn_no_locks
from ..writing import OutputError, explained_output, lock, write_atomically
from .output import Format, Lines
from .whole_lines import keep_whole_lines


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


def begin(
    path: Path | None, form: Format, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> tuple[Lines, Done]:
    """Open an output, and say which images it holds already.

    Beside a file stands `<path>.run`, which holds the settings, so that no file mixes the answers of two
    models, or lines of two kinds. No two runs write one file at a time, where the disk has locks.

    Args:
        path: the output file; None for standard output.
        form: how lines are written.
        settings: what a line depends on, as JSON values: `model` (the SHA-256 of the model file), and options
            by their names.
        resume: go on with the output that is there.
        overwrite: replace the output that is there.

    Raises:
        OutputError: when it exists and neither `resume` nor `overwrite` is set, when it was written with
            other settings, when another run is writing it, or when it cannot be written.
    """
    if path is None:
        return Lines(sys.stdout.buffer, form, kept=False), Done(iter(()))
    with explained_output(path):
        if path.is_dir():
            raise OutputError(f"{path}: expected a file to write to, found a folder; give a file name")
        if path.exists() and not keeps(path):
            if resume:
                raise OutputError(f"{path} is no plain file and keeps nothing; leave --resume out")
            return Lines(path.open("ab"), form, kept=False), Done(iter(()))
        file = path.open("ab")
        try:
            _lock(file, path)
            done = _begin(file, path, form, settings, resume=resume, overwrite=overwrite)
            return Lines(file, form, kept=True), done
        except BaseException:
            file.close()
            raise


def keeps(path: Path) -> bool:
    """Return whether a path is a plain file, which can be gone on with, and has room for a note beside it.

    /dev/null and a pipe are none, and /dev/stdout is none, wherever it leads.
    """
    return path.is_file() and path.absolute().parent not in (Path("/dev"), Path("/dev/fd"))


def _begin(
    file: IO[bytes], path: Path, form: Format, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> Done:
    note = path.with_name(path.name + ".run")
    settings = {**settings, "format": form}
    if resume and path.stat().st_size:
        _expect_same(note, path, settings)
        return Done(keep_whole_lines(path, form))
    if path.stat().st_size and not overwrite:
        raise OutputError(f"{path} is there already: --resume goes on with it, --overwrite begins anew")
    file.truncate(0)
    os.fsync(file.fileno())  # before the note: after a power cut it must not vouch for the old lines
    write_atomically(note, (json.dumps(settings) + "\n").encode())
    return Done(iter(()))


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep every other run off the file for as long as it is open."""
    try:
        locked = lock(file.fileno())
    except BlockingIOError:
        raise being_written(path) from None
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
    if found["model"] != settings["model"]:
        raise OutputError(
            f"another model wrote {path} (SHA-256 {found['model']}, this one {settings['model']}); "
            "use a new --output"
        )
    for name, value in settings.items():
        if found[name] != value:
            raise written_otherwise(path, name, found[name], value)


def written_otherwise(output: Path | str, name: str, before: object, now: object) -> OutputError:
    """Return the error of an output whose lines were written with another value of an option."""
    was, found = ("not given" if value is None else str(value) for value in (before, now))
    option = "--" + name.replace("_", "-")
    return OutputError(
        f"{output} was written with {option} {was}, found {found}; type the same, or use a new --output"
    )


def _key(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
