"""Names that may leave this machine: paths without the folders that nobody else needs to know."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

HOMES = ("home", "Users")  # folders whose folders are called like people


def public_name(name: str) -> str:
    """Return the name of a data set or file without the folders above it.

    Args:
        name: a path, or a word such as "digits test"; a relative path below the working directory stays.

    Returns:
        A path inside the working directory, relative to it; of any other path its last part, and the
        folder that it lies in unless that is private: the home, the temporary folder, one above these.
    """
    path = Path(name)
    if not path.is_absolute() and ".." not in path.parts:
        return name
    full, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100 (links stay as they were typed)
    if len(here.parts) > 1 and full.is_relative_to(here):
        return full.name if full == here else str(full.relative_to(here))
    return full.name if _is_private(full.parent, here) else "/".join(full.parts[-2:])


def public_command(words: Sequence[str]) -> str:
    """Return a command line as it can be typed, each path in it as `public_name` gives it.

    Args:
        words: the command and its arguments, each as the program got it; `--option=PATH` is understood.
    """
    return shlex.join(_public_word(word) for word in words)


def _public_word(word: str) -> str:
    option, equals, value = word.partition("=")
    if word.startswith("-") and equals:
        return f"{option}={public_name(value)}"
    return public_name(word)


def _is_private(folder: Path, here: Path) -> bool:
    """Return whether the name of a folder reveals who uses this machine, or how it is set up."""
    own = [here]
    with suppress(FileNotFoundError):  # no folder at all can be written to
        own.append(Path(tempfile.gettempdir()))
    with suppress(RuntimeError):  # a user without an entry, as in some containers
        own.append(Path.home())
    return folder.parent.name in HOMES or any(each.is_relative_to(folder) for each in own)
