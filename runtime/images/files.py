"""Finding the images that a command line means."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def find_images(paths: Path | str | Iterable[Path | str], *, skip: Path | None = None) -> Iterator[Path]:
    """The files among `paths`, and the images in the folders among them and below, sorted by name in each.

    A file that is named is given whatever it is called; in a folder the suffix decides. Links to folders are
    not followed inside a folder, so no loop can catch the walk. A folder that cannot be listed is given
    itself, so that it fails where every other failure is told. The folder `skip` is passed by, and so is what
    systems leave behind (`left_by_a_system`), unless it is named.
    """
    skipped = skip.stat() if skip is not None and skip.is_dir() else None
    for path in [paths] if isinstance(paths, Path | str) else paths:
        path = Path(path)
        if path.is_dir():
            yield from _walk(path, skipped)
        else:
            yield path


@cache
def image_suffixes() -> frozenset[str]:
    """In lower case, with the dot: what Pillow reads, and HEIC, whose failure says what it lacks."""
    from PIL import Image

    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    return frozenset(readable - {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf"} | {".heic", ".heif"})


# In lower case: archives and indexes of macOS, Windows, Synology, QNAP and Linux.
_LEFT_BEHIND = frozenset(
    {
        "__macosx",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "lost+found",
        "found.000",
    }
    | {
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "thumbs.db",
        "desktop.ini",
    }
    | {"icon\r", "network trash folder", "temporary items"}
)


def left_by_a_system(name: str) -> bool:
    """Return whether a file or folder of this name is none that a person made to hold images.

    Hidden ones (`.thumbnails`, `.Trash-1000`, `._photo.jpg`, `.ipynb_checkpoints`), recycle bins, indexes of
    network disks, and the `__MACOSX` of a Mac's archives.
    """
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _walk(folder: Path, skipped: os.stat_result | None) -> Iterator[Path]:
    suffixes = image_suffixes()
    open_folders = [iter([(folder, True)])]  # from the outermost to the one being listed
    while open_folders:
        path, is_folder = next(open_folders[-1], (None, False))
        if path is None:
            open_folders.pop()
        elif is_folder:
            if skipped is not None and os.path.samestat(path.stat(), skipped):
                continue
            entries = _list(path)
            if entries is None:
                yield path
            else:
                open_folders.append(iter(entries))
        elif path.suffix.lower() in suffixes and not path.is_dir():
            yield path


def _list(folder: Path) -> list[tuple[Path, bool]] | None:
    """List a folder, sorted by name, and say of each entry if it is a folder; None if it cannot be read."""
    try:
        with os.scandir(folder) as listing:
            names = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in listing
                if not left_by_a_system(entry.name)
            )
    except OSError:
        return None
    return [(folder / name, is_folder) for name, is_folder in names]
