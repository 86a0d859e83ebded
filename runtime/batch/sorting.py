"""Images sorted into one folder for each label, as links or copies."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)}


def folder_names(labels: Sequence[str]) -> list[str]:
    """A folder name for each class, all different, harmless and as like the label as that allows.

    Labels come from a model file that may be hostile: none of them leads out of the folder they are put in.
    """
    names = [_harmless(label) for label in labels]
    count = Counter(name.casefold() for name in names)
    return [
        name if name and count[name.casefold()] == 1 else f"{name} [{index}]".strip()
        for index, name in enumerate(names)
    ]


class Sorter:
    """Puts images into `root/<label>/`. Doing it again changes nothing: a run can be resumed."""

    def __init__(self, root: Path, labels: Sequence[str], *, copy: bool) -> None:
        self._folders = [root / name for name in folder_names(labels)]
        self._copy = copy

    def put(self, image: Path, index: int) -> Path:
        """Link or copy an image into the folder of class `index`, and say where it is.

        A name that another image took first gets a few digits of its path's hash.

        Raises:
            OSError: when the disk does not take it.
        """
        folder = self._folders[index]
        folder.mkdir(parents=True, exist_ok=True)
        digest = blake2b(os.fsencode(image.absolute()), digest_size=4).hexdigest()
        for name in (image.name, f"{image.stem}~{digest}{image.suffix}"):
            place = folder / name
            if not os.path.lexists(place):
                self._make(image, place)
                return place
            if self._is_same(image, place):
                return place
        return place

    def _make(self, image: Path, place: Path) -> None:
        if not self._copy:
            place.symlink_to(image.absolute())
            return
        aside = place.with_name(f".{blake2b(os.fsencode(place.name), digest_size=8).hexdigest()}.tmp")
        shutil.copyfile(image, aside)
        aside.replace(place)

    def _is_same(self, image: Path, place: Path) -> bool:
        if not self._copy:
            return place.is_symlink() and place.readlink() == image.absolute()
        return place.is_file() and filecmp.cmp(image, place, shallow=False)


def _harmless(label: str) -> str:
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', "_", label)[:80].strip(" .")
    return f"_{name}" if name.upper().split(".")[0] in _RESERVED else name
