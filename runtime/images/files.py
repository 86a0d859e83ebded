"""Finding the images that a command line means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .left_out import LeftOut

T = TypeVar("T")


def find_images(
    paths: os.PathLike[str] | str | Iterable[os.PathLike[str] | str],
    *,
    skip: Path | None = None,
    all_files: bool = False,
    left_out: LeftOut | None = None,
) -> Iterator[Path]:
    """The files among `paths`, and the images in the folders among them and below, sorted by name in each.

    A file that is named is given whatever it is called; in a folder the suffix decides. Links to folders are
    not followed inside a folder, so no loop can catch the walk. A folder that cannot be listed is given
    itself, so that it fails where every other failure is told. What systems leave behind
    (`left_by_a_system`) is passed by, unless it is named.

    Args:
        paths: files and folders.
        skip: a folder that is passed by as well.
        all_files: give every file in a folder, whatever its suffix.
        left_out: counts the files in folders that were not given, and links to folders.
    """
    skipped = skip.stat() if skip is not None and is_folder(skip) else None
    entries = partial(_list, skipped=skipped, left_out=left_out)
    for path in [paths] if isinstance(paths, os.PathLike | str) else paths:
        path = Path(path)
        if is_folder(path):
            yield from walk(path, entries, lambda file: file.name, all_files=all_files, left_out=left_out)
        else:
            yield path


def is_folder(path: Path | str) -> bool:
    """Return whether there is a folder.

    Up to Python 3.13 `Path.is_dir` raises for names too long, or in a folder that may not be searched.
    """
    return os.path.isdir(path)  # noqa: PTH112


def walk(
    root: T,
    entries: Callable[[T], list[tuple[T, bool]] | None],
    name_of: Callable[[T], str],
    *,
    all_files: bool,
    left_out: LeftOut | None,
) -> Iterator[T]:
    """Walk through folders of any kind, depth first; one listing per level is held.

    Args:
        root: a folder.
        entries: lists a folder in the order of the walk, and says of each entry if it is a folder; None where
            it cannot be listed, which gives the folder itself.
        name_of: the name of a file.
        all_files: give every file, whatever its suffix.
        left_out: counts the files that are not given.
    """
    suffixes = image_suffixes()
    open_folders = [iter([(root, True)])]  # from the outermost to the one being listed
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
            continue
        path, is_folder = entry
        if is_folder:
            listed = entries(path)
            if listed is None:
                yield path
            else:
                open_folders.append(iter(listed))
        elif all_files or suffix_of(name_of(path)) in suffixes:
            yield path
        elif left_out is not None:
            left_out.add_file(name_of(path))


def suffix_of(name: str) -> str:
    """Return the end of a file's name in lower case, with the dot; nothing where there is none."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


@cache
def image_suffixes() -> frozenset[str]:
    """In lower case, with the dot: what is read, and HEIC, whose failure says what it lacks."""
    from PIL import Image

    from .forms import is_read

    suffixes = Image.registered_extensions().items()
    return frozenset({suffix for suffix, name in suffixes if is_read(name)} | {".heic", ".heif"})


# In lower case: archives and indexes of macOS, Windows, Synology, QNAP and Linux.
_LEFT_BEHIND = frozenset(
    {"__macosx", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"}
    | {"found.000", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "thumbs.db"}
    | {"desktop.ini", "icon\r", "network trash folder", "temporary items"}
)


def left_by_a_system(name: str) -> bool:
    """Return whether a file or folder of this name is none that a person made to hold images.

    Hidden ones (`.thumbnails`, `.Trash-1000`, `._photo.jpg`, `.ipynb_checkpoints`), recycle bins, indexes of
    network disks, and the `__MACOSX` of a Mac's archives.
    """
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _list(
    folder: Path, *, skipped: os.stat_result | None, left_out: LeftOut | None
) -> list[tuple[Path, bool]] | None:
    """List a folder, sorted by name, and say of each entry if it is a folder; None if it cannot be read."""
    names = []
    try:
        if skipped is not None and os.path.samestat(folder.stat(), skipped):
            return []
        with os.scandir(folder) as listing:
            for entry in listing:
                if left_by_a_system(entry.name):
                    continue
                # A junction of Windows is a link, too; Python 3.11 cannot tell, and bool() is False.
                if (entry.is_symlink() or getattr(entry, "is_junction", bool)()) and entry.is_dir():
                    if left_out is not None:
                        left_out.add_link()
                else:
                    names.append((entry.name, entry.is_dir(follow_symlinks=False)))
    except OSError:
        return None
    return [(folder / name, is_folder) for name, is_folder in sorted(names)]
