"""Images sorted into one folder per label, as links or copies (--sort-into)."""

from __future__ import annotations

import errno
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
from ..writing import AtomicFile, OutputError, explain_output_errors, temporary_folder

_LONGEST = 180  # bytes of a name
# Errors of a disk for a name that another disk allows.
_NAME_ERRORS = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)
_NO_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_RESERVED = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)}


def name_sort_folders(labels: Sequence[str]) -> list[str]:
    """Return one folder name per label: all different, safe on any disk, and close to the label.

    Labels come from a model file that may be hostile: no name leads out of the folder it is put in. Names
    that a disk may take for the same one (by case, or by how an accent is written) count as equal.
    """
    names = [_make_safe(label) for label in labels]
    count = Counter(map(_fold, names))
    unique = {name for name in names if name and count[_fold(name)] == 1}
    taken = set(map(_fold, unique))
    folders = []
    for index, name in enumerate(names):
        if name not in unique:
            name = f"{name} [{index}]".strip()
            while _fold(name) in taken:
                name += "_"
            taken.add(_fold(name))
        folders.append(name)
    return folders


class Sorter:
    """Put images into `root/<label>/`, as links or copies. To repeat it changes nothing, so a run can resume.

    Raises:
        OutputError: if files, or links without `copy`, cannot be made in `root`.
    """

    def __init__(self, root: Path, labels: Sequence[str], *, copy: bool) -> None:
        self._folders = [root / name for name in name_sort_folders(labels)]
        self._copy = copy
        self._tidied = set[Path]()
        with explain_output_errors(root, begun=True):
            root.mkdir(parents=True, exist_ok=True)
            with temporary_folder(root) as folder:
                if not copy:
                    _try_link(folder / "link", root)

    def put(self, image: Path, index: int) -> Path:
        """Link or copy an image into the folder of class `index`, and return its path there.

        If another image of this name is there, the name gets a few digits of the hash of the path.

        Raises:
            ImageError: if the image itself cannot be read any more.
        """
        try:
            return self._put(image, self._folders[index])
        except OSError as error:
            if self._copy and not os.access(image, os.R_OK):
                raise ImageError(f"it cannot be copied: {error.strerror or error}") from error
            if not self._copy and error.errno in _NO_LINKS:  # a folder of a label may be on another disk
                why = f"{error.strerror}; where no links can be made, add --copy"
                raise OSError(error.errno, why, str(self._folders[index])) from error
            raise

    def _put(self, image: Path, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        digest = blake2b(os.fsencode(image.absolute()), digest_size=4).hexdigest()
        place = folder / image.name
        if os.path.lexists(place) and not self._is_same(image, place):
            place = folder / f"{_cut(image.stem)}~{digest}{image.suffix}"  # of this image alone
        try:
            self._make(image, place)
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            suffix = "." + _make_safe(image.suffix[1:]) if image.suffix else ""
            place = folder / f"{_make_safe(image.stem)}~{digest}{suffix}"
            self._make(image, place)
        return place

    def _make(self, image: Path, place: Path) -> None:
        if os.path.lexists(place) and self._is_same(image, place):
            return
        if not self._copy:
            place.unlink(missing_ok=True)  # a link of this name leads to where the image was before
            place.symlink_to(image.absolute())
            return
        with image.open("rb") as source, AtomicFile(place, tidy=place.parent not in self._tidied) as aside:
            self._tidied.add(place.parent)  # once: there may be a million images
            shutil.copyfileobj(source, aside.file)
            aside.commit(sync=False)

    def _is_same(self, image: Path, place: Path) -> bool:
        if not self._copy:
            return place.is_symlink() and place.readlink() == image.absolute()
        return place.is_file() and filecmp.cmp(image, place, shallow=False)


def _try_link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target.absolute())
    except OSError as error:
        raise OutputError(
            f"{target}: no links can be made there ({error.strerror or error}); add --copy, which copies "
            "the images"
        ) from error


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _make_safe(label: str) -> str:
    """Return a label as a name of a file or folder: printable, so without marks of a writing direction."""
    shown = "".join(c if c.isprintable() else " " if c.isspace() and c > "\x1f" else "_" for c in label[:80])
    name = _cut(re.sub(r'[<>:"/\\|?*]', "_", shown).strip(" .")).rstrip(" .")
    return f"_{name}" if name.upper().split(".")[0] in _RESERVED else name


def _cut(name: str) -> str:
    """Return the start of a name that leaves room for a suffix in the 255 bytes that disks allow."""
    data = os.fsencode(name)
    return name if len(data) <= _LONGEST else data[:_LONGEST].decode("utf-8", "ignore")
