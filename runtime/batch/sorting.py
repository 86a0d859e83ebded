"""Images sorted into one folder for each label, as links or copies."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from ..errors import ImageError

_LONGEST = 180  # bytes of a name
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)}


def folder_names(labels: Sequence[str]) -> list[str]:
    """Return a folder name for each class, all different, harmless and as like the label as that allows.

    Labels come from a model file that may be hostile: none of them leads out of the folder they are put in.
    Names that a disk may take for one (by case, or by how an accent is written) count as equal.
    """
    names = [_harmless(label) for label in labels]
    count = Counter(map(_folded, names))
    alone = {name for name in names if name and count[_folded(name)] == 1}
    taken = set(map(_folded, alone))
    found = []
    for index, name in enumerate(names):
        if name not in alone:
            name = f"{name} [{index}]".strip()
            while _folded(name) in taken:
                name += "_"
            taken.add(_folded(name))
        found.append(name)
    return found


class Sorter:
    """Puts images into `root/<label>/`. Doing it again changes nothing: a run can be resumed."""

    def __init__(self, root: Path, labels: Sequence[str], *, copy: bool) -> None:
        self._folders = [root / name for name in folder_names(labels)]
        self._copy = copy

    def put(self, image: Path, index: int) -> Path:
        """Link or copy an image into the folder of class `index`, and say where it is.

        A name that another image took first gets a few digits of its path's hash.

        Raises:
            ImageError: when the image itself cannot be read any more.
            OSError: when the disk does not take it.
        """
        try:
            return self._put(image, self._folders[index])
        except OSError as error:
            if self._copy and not os.access(image, os.R_OK):
                raise ImageError(f"it cannot be copied: {error.strerror or error}") from error
            raise

    def _put(self, image: Path, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        digest = blake2b(os.fsencode(image.absolute()), digest_size=4).hexdigest()
        place = folder / image.name
        if os.path.lexists(place) and not self._is_same(image, place):
            place = folder / f"{_cut(image.stem)}~{digest}{image.suffix}"  # of this image alone
        if not os.path.lexists(place) or not self._is_same(image, place):
            self._make(image, place, folder / f".{digest}.tmp")
        return place

    def _make(self, image: Path, place: Path, aside: Path) -> None:
        aside.unlink(missing_ok=True)
        try:
            if self._copy:
                shutil.copyfile(image, aside)
            else:
                aside.symlink_to(image.absolute())
            aside.replace(place)
        finally:
            aside.unlink(missing_ok=True)

    def _is_same(self, image: Path, place: Path) -> bool:
        if not self._copy:
            return place.is_symlink() and place.readlink() == image.absolute()
        return place.is_file() and filecmp.cmp(image, place, shallow=False)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _harmless(label: str) -> str:
    name = _cut(re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', "_", label)[:80].strip(" .")).rstrip(" .")
    return f"_{name}" if name.upper().split(".")[0] in _RESERVED else name


def _cut(name: str) -> str:
    """Return the start of a name that leaves room for a suffix in the 255 bytes that disks allow."""
    data = os.fsencode(name)
    return name if len(data) <= _LONGEST else data[:_LONGEST].decode("utf-8", "ignore")
