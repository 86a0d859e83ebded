"""Files written aside and then renamed, and what goes wrong with an output in words."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .interrupts import careful


class OutputError(InputError):
    """An output that cannot be begun, continued or written, and what to do about it."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to the disk, and rename it into place, so that it is whole or as it was.

    Raises:
        OutputError: when it cannot be written, with the reason.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with careful(), explained_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Find out, before long work, whether files can be written to a folder that may not be there yet.

    A folder is made and removed there, since permissions alone do not tell (a read-only disk, root).

    Raises:
        OutputError: for a file in its place, and for a place that cannot be written to.
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{place}: expected a folder to write to, found a file; choose another --out")
    with careful(), explained_output(folder), tempfile.TemporaryDirectory(prefix=".vit-edge.", dir=place):
        pass


@contextmanager
def explained_output(path: Path) -> Iterator[None]:
    """Turn what the system says about an output into an OutputError that names it.

    Raises:
        OutputError: in the place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise OutputError(f"{path}: the disk is full; free some space") from error
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: it cannot be written ({reason}); choose another output") from error
