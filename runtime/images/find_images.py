"""Find images in files and folders, and count the files that are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from ..text import format_count, make_printable

LINKS = "links to folders"
_NO_SUFFIX, _OTHER = "no suffix", "other"
_LONGEST, _KINDS, _SHOWN = 12, 200, 10  # characters of a suffix; kinds that are counted; that a line names


class SkippedFiles:
    """Number of files in folders that were skipped, by suffix, and of links to folders.

    At most 200 kinds are counted separately, so that a folder of any content takes little memory.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @staticmethod
    def merge(parts: Iterable[SkippedFiles]) -> SkippedFiles:
        """Return all counts together; an object that is given twice counts once (splits share it)."""
        together = SkippedFiles()
        for part in {id(part): part for part in parts}.values():
            together.counts += part.counts
        return together

    def in_brackets(self) -> str:
        """Return the counts in brackets for the middle of a message; empty where nothing was skipped."""
        line = describe_skipped(self.counts)
        return f" ({line})" if line else ""

    def add_link(self) -> None:
        """Count a link to a folder."""
        self._add(LINKS)

    def add_file(self, name: str) -> None:
        """Count a file by its suffix."""
        suffix = suffix_of(name)
        self._add(suffix if 0 < len(suffix) <= _LONGEST else _OTHER if suffix else _NO_SUFFIX)

    def _add(self, kind: str) -> None:
        self.counts[kind if kind in self.counts or len(self.counts) < _KINDS else _OTHER] += 1


def describe_skipped(counts: Mapping[str, int]) -> str:
    """Return one line about skipped files, "skipped 12 files: .dng 9, .jxl 3"; empty where there are none.

    Args:
        counts: of a `SkippedFiles`.
    """
    kinds = sorted(((kind, n) for kind, n in counts.items() if kind != LINKS), key=lambda each: -each[1])
    parts = []
    if total := sum(n for _, n in kinds):
        named = [f"{make_printable(kind)} {n:,}" for kind, n in kinds[:_SHOWN]]
        named += [f"others {sum(n for _, n in kinds[_SHOWN:]):,}"] if len(kinds) > _SHOWN else []
        parts.append(f"{format_count(total, 'file')}: {', '.join(named)}")
    if links := counts.get(LINKS, 0):
        parts.append(format_count(links, "link to a folder", "links to folders"))
    return f"skipped {'; '.join(parts)}" if parts else ""


# --- The walk through folders ---

T = TypeVar("T")


def find_images(
    paths: os.PathLike[str] | str | Iterable[os.PathLike[str] | str],
    *,
    skip: Path | None = None,
    all_files: bool = False,
    skipped: SkippedFiles | None = None,
) -> Iterator[Path]:
    """Yield the files among `paths`, and the images in the folders among them and below.

    A file that is named is yielded whatever its name; in a folder the suffix decides. Links to folders are
    not followed inside a folder, so no loop can catch the walk. A link that leads nowhere counts as a file.
    A folder that cannot be listed is yielded itself, so that reading it fails with the reason. System files
    (`is_system_file`) are skipped unless they are named.

    Args:
        paths: files and folders.
        skip: a folder to skip as well.
        all_files: yield every file in a folder, whatever its suffix.
        skipped: counts the files in folders that were not yielded, and links to folders.

    Yields:
        Paths in the order of `paths`; those of a folder are sorted by name, depth first.
    """
    for path in [paths] if isinstance(paths, os.PathLike | str) else paths:
        path = Path(path)
        if is_folder(path):
            entries = _Lister(skip, skipped)
            yield from walk_folder(
                path, entries, lambda file: file.name, all_files=all_files, skipped=skipped
            )
        else:
            yield path


def is_folder(path: Path | str) -> bool:
    """Return whether `path` is a folder; False where that cannot be found out.

    Up to Python 3.13 `Path.is_dir` raises for names too long, or in a folder that may not be searched.

    Args:
        path: of anything, or of nothing.
    """
    return os.path.isdir(path)  # noqa: PTH112


def walk_folder(
    root: T,
    entries: Callable[[T], Sequence[tuple[T, bool | None]] | None],
    name_of: Callable[[T], str],
    *,
    all_files: bool,
    skipped: SkippedFiles | None,
) -> Iterator[T]:
    """Yield the files of a walk through folders on a disk or in a store, depth first.

    One listing per level is held in memory. A folder that cannot be listed is yielded itself.

    Args:
        root: a folder.
        entries: lists a folder in the order of the walk. Each entry is True for a folder, False for a file
            that its suffix decides on, None for one that is yielded in any case. It returns None
            for a folder that cannot be listed.
        name_of: returns the name of a file.
        all_files: yield every file, whatever its suffix.
        skipped: counts the files that are not yielded.
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
        elif skipped is not None:
            skipped.add_file(name_of(path))


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, with the dot; empty where there is none.

    Args:
        name: without its folder. In ".png" the dot begins the name, so there is no suffix.
    """
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem and suffix else ""


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of images, in lower case with the dot.

    Those are of the formats that are read, and of HEIC, whose error names the package that it needs.
    """
    from PIL import Image

    from .formats import is_supported

    suffixes = Image.registered_extensions().items()
    return frozenset({suffix for suffix, name in suffixes if is_supported(name)} | {".heic", ".heif"})


# In lower case: archives and indexes of macOS, Windows, Synology, QNAP and Linux.
_SYSTEM_FILES = frozenset(
    {"__macosx", "$recycle.bin", "recycler", "recycled", "system volume information", "lost+found"}
    | {"found.000", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "thumbs.db"}
    | {"desktop.ini", "icon\r", "network trash folder", "temporary items"}
)


def is_system_file(name: str) -> bool:
    """Return whether a file or folder of this name was made by a system, not by a person to hold images.

    These are hidden ones (`.thumbnails`, `.Trash-1000`, `._photo.jpg`, `.ipynb_checkpoints`), recycle bins,
    indexes of network disks, and the `__MACOSX` of a Mac's archives.

    Args:
        name: without its folder.
    """
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


class _Lister:
    """Lists folders for a walk, depth first, without the folder `skip`, and counts links to folders."""

    def __init__(self, skip: Path | None, skipped: SkippedFiles | None) -> None:
        self._skip = skip.stat() if skip is not None and is_folder(skip) else None
        self._skipped = SkippedFiles() if skipped is None else skipped
        # Depth and status of each folder around the one being listed.
        self._around: list[tuple[int, os.stat_result]] = []

    def __call__(self, folder: Path) -> Sequence[tuple[Path, bool | None]]:
        """List a folder, sorted by name; if listing fails midway, the folder itself comes last.

        A folder that holds itself, as some mounted disks show it, counts as a link to a folder.
        """
        names = list[tuple[str, bool]]()
        rest: list[tuple[Path, bool | None]] = []
        try:
            status = folder.stat()
            if self._skip is not None and os.path.samestat(status, self._skip):
                return []
            if self._is_inside_itself(folder, status):
                self._skipped.add_link()
                return []
            with os.scandir(folder) as listing:
                for entry in listing:
                    if is_system_file(entry.name):
                        continue
                    kind = _kind_of(entry)
                    if kind == "link":
                        self._skipped.add_link()
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


def _kind_of(entry: os.DirEntry[str]) -> Literal["file", "folder", "link"]:
    """Return what an entry of a folder is; one that cannot be examined counts as a file.

    Such are links to themselves, in a circle or into a folder that may not be searched, and everything in a
    folder that may be listed and not searched, on disks whose listings do not hold the kind of each entry.
    """
    try:
        # A junction of Windows is a link, too; Python 3.11 has no test for it, and bool() is False.
        if (entry.is_symlink() or getattr(entry, "is_junction", bool)()) and entry.is_dir():
            return "link"
        return "folder" if entry.is_dir(follow_symlinks=False) else "file"
    except OSError:
        return "file"
