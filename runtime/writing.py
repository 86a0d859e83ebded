"""Files written aside and then renamed, and what goes wrong with an output in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


class OutputError(InputError):
    """An output that cannot be begun, continued or written, and what to do about it."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to the disk, and rename it into place, so that it is whole or as it was.

    Raises:
        OutputError: when it cannot be written, with the reason.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained_output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


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
