"""Files that a walk through folders leaves out: counted, and told in one line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from ..text import printable

# --- Files that a walk through folders leaves out: counted, and told in one line ---


LINKS = "links to folders"
_NO_SUFFIX, _OTHER = "no suffix", "other"
_LONGEST, _KINDS, _SHOWN = 12, 200, 10  # characters of a suffix; kinds that are counted; that a line names


class LeftOut:
    """Count of the files that a walk through folders passed by, by suffix; its size is bounded."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @staticmethod
    def of(parts: Iterable[LeftOut]) -> LeftOut:
        """Return all counts together; images that were split share one, which counts once."""
        together = LeftOut()
        for left_out in {id(part): part for part in parts}.values():
            together.counts += left_out.counts
        return together

    def aside(self) -> str:
        """Return the counts in brackets for the middle of a message; empty where nothing was left out."""
        line = left_out_line(self.counts)
        return f" ({line})" if line else ""

    def add_link(self) -> None:
        """Count a link to a folder."""
        self.add(LINKS)

    def add(self, kind: str) -> None:
        """Count one; kinds beyond the two-hundredth are counted together."""
        self.counts[kind if kind in self.counts or len(self.counts) < _KINDS else _OTHER] += 1

    def add_file(self, name: str) -> None:
        """Count a file by its suffix."""
        suffix = suffix_of(name)
        self.add(suffix if 0 < len(suffix) <= _LONGEST else _OTHER if suffix else _NO_SUFFIX)


def left_out_line(counts: Mapping[str, int]) -> str:
    """Return what was left out as one line, "skipped 12 files: .dng 9, .jxl 3"; empty where nothing was.

    Args:
        counts: of a `LeftOut`.
    """
    kinds = sorted(((kind, n) for kind, n in counts.items() if kind != LINKS), key=lambda each: -each[1])
    parts = []
    if total := sum(n for _, n in kinds):
        named = [f"{printable(kind)} {n:,}" for kind, n in kinds[:_SHOWN]]
        named += [f"others {sum(n for _, n in kinds[_SHOWN:]):,}"] if len(kinds) > _SHOWN else []
        parts.append(f"{total:,} {'file' if total == 1 else 'files'}: {', '.join(named)}")
    if links := counts.get(LINKS, 0):
        parts.append("1 link to a folder" if links == 1 else f"{links:,} links to folders")
    return f"skipped {'; '.join(parts)}" if parts else ""


# --- Finding the images that a command line means ---


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
    not followed inside a folder, so no loop can catch the walk. A link that leads nowhere is judged by its
    suffix, as a file is. A folder that cannot be listed is given itself, so that it fails where every other
    failure is told. What systems leave behind (`left_by_a_system`) is passed by, unless it is named.

    Args:
        paths: files and folders.
        skip: a folder that is passed by as well.
        all_files: give every file in a folder, whatever its suffix.
        left_out: counts the files in folders that were not given, and links to folders.
    """
    for path in [paths] if isinstance(paths, os.PathLike | str) else paths:
        path = Path(path)
        if is_folder(path):
            entries = _Lister(skip, left_out)
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
    entries: Callable[[T], Sequence[tuple[T, bool | None]] | None],
    name_of: Callable[[T], str],
    *,
    all_files: bool,
    left_out: LeftOut | None,
) -> Iterator[T]:
    """Walk through folders of any kind, depth first; one listing per level is held.

    Args:
        root: a folder.
        entries: lists a folder in the order of the walk, and says of each entry if it is a folder, None for
            one that is given in any case; None where it cannot be listed, which gives the folder itself.
        name_of: the name of a file.
        all_files: give every file, whatever its suffix.
        left_out: counts the files that are not given.
    """
    suffixes = image_suffixes()
    # From the outermost to the one being listed.
    open_folders: list[Iterator[tuple[T, bool | None]]] = [iter([(root, True)])]
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
        elif is_folder is None or all_files or suffix_of(name_of(path)) in suffixes:
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


class _Lister:
    """Lists folders for a walk, depth first.

    Args:
        skip: a folder that is passed by.
        left_out: counts links to folders.
    """

    def __init__(self, skip: Path | None, left_out: LeftOut | None) -> None:
        self._skip = skip.stat() if skip is not None and is_folder(skip) else None
        self._left_out = left_out
        self._around: list[
            tuple[int, os.stat_result]
        ] = []  # depth of each folder around the one being listed

    def __call__(self, folder: Path) -> Sequence[tuple[Path, bool | None]]:
        """List a folder for `walk`, sorted by name; if that breaks off, the folder itself comes last.

        A folder that holds itself, as some mounted disks show it, is a link to a folder.
        """
        names = list[tuple[str, bool]]()
        rest: list[tuple[Path, bool | None]] = []
        try:
            status = folder.stat()
            if self._skip is not None and os.path.samestat(status, self._skip):
                return []
            if self._is_inside_itself(folder, status):
                self._count_link()
                return []
            with os.scandir(folder) as listing:
                for entry in listing:
                    if left_by_a_system(entry.name):
                        continue
                    kind = _kind_of(entry)
                    if kind == "link":
                        self._count_link()
                    else:
                        names.append((entry.name, kind == "folder"))
        except OSError:
            rest = [(folder, None)]
        return [*((folder / name, is_folder) for name, is_folder in sorted(names)), *rest]

    def _is_inside_itself(self, folder: Path, status: os.stat_result) -> bool:
        depth = len(folder.parts)
        while self._around and self._around[-1][0] >= depth:
            self._around.pop()
        # A disk that numbers nothing has 0 everywhere.
        found = status.st_ino != 0 and any(os.path.samestat(status, each) for _, each in self._around)
        self._around.append((depth, status))
        return found

    def _count_link(self) -> None:
        if self._left_out is not None:
            self._left_out.add_link()


def _kind_of(entry: os.DirEntry[str]) -> Literal["file", "folder", "link"]:
    """Return what an entry of a folder is; what cannot be looked at is a file, which its suffix judges.

    Such are links to themselves, in a circle or into a folder that may not be searched, and everything in a
    folder that may be listed and not searched, on disks that do not say in the listing what each entry is.
    """
    try:
        # A junction of Windows is a link, too; Python 3.11 cannot tell, and bool() is False.
        if (entry.is_symlink() or getattr(entry, "is_junction", bool)()) and entry.is_dir():
            return "link"
        return "folder" if entry.is_dir(follow_symlinks=False) else "file"
    except OSError:
        return "file"
