"""Folders as people keep them: which are splits, which are classes, and what is passed over and said."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.images.files import image_suffixes, left_by_a_system
from runtime.text import counted
from vit.data.idx import find_idx

# Usual spellings of each split; case, and "-", "_" or a space between words, do not matter.
SPELLINGS = {
    "train": ("train", "training", "trainset", "traindata", "trainingset", "trainingdata", "trainimages"),
    "val": (
        *("val", "valid", "validation", "validate", "dev", "valset", "validset", "validationset"),
        *("valdata", "validationdata", "devset", "valimages"),
    ),
    "test": ("test", "testing", "testset", "testdata", "testingset", "testingdata", "testimages"),
}
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}


class DataError(InputError):
    """Images that cannot be used; the message names the path and what was expected there."""


@dataclass(frozen=True)
class Layout:
    """Content of a folder: the folder of each split, or none, and one sentence per entry passed over."""

    splits: dict[str, Path]
    notes: tuple[str, ...] = ()


def layout_of(folder: Path) -> Layout:
    """Find the splits in a folder.

    A folder named as a split is one when it holds folders of its own, or nothing but splits stands beside it;
    among other folders of images, `train` is a class.

    Raises:
        DataError: for two folders that mean the same split, and for folders with the same folders in each.
    """
    inside = subfolders(folder)
    named = [(split, path) for path in inside if (split := split_named(path.name)) is not None]
    others = [path for path in inside if split_named(path.name) is None]
    if named and not others and all(subfolders(path) == [] for _, path in named):
        named = named if {split for split, _ in named} >= {"train"} or len(named) > 1 else []
    elif named and not any(subfolders(path) for _, path in named):
        return Layout(
            {}, (f"{', '.join(p.name for _, p in named)}: taken as a class, like the folders beside it",)
        )
    if not named:
        refuse_same_subfolders(folder, inside)
        return Layout({}, loose_beside(folder, inside))
    found: dict[str, Path] = {}
    for split, path in named:
        if split in found:
            raise DataError(
                f"{folder}: {found[split].name} and {path.name} both mean the {split} split; "
                "rename or remove one of them"
            )
        found[split] = unwrapped(path)
    notes = [f"{path.name}: passed over, it is no split" for path in others]
    ordered = {split: found[split] for split in SPELLINGS if split in found}
    return Layout(ordered, (*notes, *loose_beside(folder, inside)))


def split_named(name: str) -> str | None:
    """The split that a folder's name means: `Validation-Set` is val."""
    return _SPLIT_OF.get(name.strip().casefold().replace("-", "").replace("_", "").replace(" ", ""))


def unwrapped(path: Path) -> Path:
    """The folder inside, where a split is packed in a folder of the same meaning: `test_set/test_set`."""
    inside = subfolders(path)
    if len(inside) == 1 and split_named(inside[0].name) == split_named(path.name) and subfolders(inside[0]):
        return inside[0]
    return path


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder by name, without hidden ones and those that systems leave behind."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not left_by_a_system(p.name))


def class_folders(folder: Path) -> dict[str, Path]:
    """The class of each folder: its name in Unicode's composed form, so that a Mac's "café" is Linux's.

    Raises:
        DataError: for two folders of one class.
    """
    found: dict[str, Path] = {}
    for path in subfolders(folder):
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise DataError(
                f"{path}: looks like {found[name].name} beside it; put their images into one folder"
            )
        found[name] = path
    return {name: found[name] for name in sorted(found)}


def refuse_same_subfolders(folder: Path, inside: Sequence[Path]) -> None:
    """Refuse folders that hold the same folders: they are splits by another name, and no classes."""
    names = [{path.name.casefold() for path in subfolders(each)} for each in inside]
    if len(names) < 2 or not all(names):
        return
    shared = sorted(set.intersection(*names))
    if len(shared) >= 2:
        raise DataError(
            f"{folder}: {', '.join(path.name for path in inside[:5])} all hold the folders "
            f"{', '.join(shared[:5])}, so those look like the classes; rename the outer folders to train, "
            "val and test, or give one of them"
        )


def loose_beside(folder: Path, inside: Sequence[Path]) -> tuple[str, ...]:
    """A sentence about images that stand beside the folders, and belong to none."""
    if not inside:
        return ()
    files = [path for path in folder.iterdir() if path.is_file() and not left_by_a_system(path.name)]
    loose = sum(path.suffix.lower() in image_suffixes() for path in files)
    return (f"{counted(loose, 'image')} beside the folders of {folder}: passed over",) if loose else ()


def only_wrapper(folder: Path) -> str:
    """Advice for a folder whose only folder holds what was expected of it; empty where that is not so."""
    inside = subfolders(folder)
    if len(inside) == 1 and len(subfolders(inside[0])) >= 2:
        return f"; give {inside[0]}, which holds {', '.join(p.name for p in subfolders(inside[0])[:4])}"
    return ""


def passed_over(source: Path | str) -> tuple[str, ...]:
    """A sentence for each thing in a folder that is no part of the data set."""
    folder = Path(source)
    if not folder.is_dir() or find_idx(folder):
        return ()
    layout = layout_of(folder)
    unlabeled = [
        f"the {split} split: passed over, its images are in no folders of classes"
        for split in layout.splits
        if split != "train" and not labeled(layout.splits, split)
    ]
    classes = [p for each in layout.splits.values() or [folder] for p in class_folders(each).values()]
    inside = [(each, p) for each in classes for p in subfolders(each)]
    links = [str(p) for _, p in inside if p.is_symlink()]
    linked = [f"{', '.join(links[:3])}: passed over, a link to a folder"] if links else []
    return (*layout.notes, *unlabeled, *linked, *_joined(inside), *_without_class(layout.splits))


def _joined(inside: Sequence[tuple[Path, Path]]) -> list[str]:
    """A sentence about folders inside classes, whose images count as the class's."""
    found: dict[Path, list[str]] = {}
    for each, path in inside:
        if not path.is_symlink():
            found.setdefault(each, []).append(path.name)
    return [
        f"{each.name}: the images of its folders {', '.join(names[:4])} are all of the class {each.name!r}"
        for each, names in list(found.items())[:3]
    ]


def _without_class(splits: Mapping[str, Path]) -> list[str]:
    """A sentence for each split that has no images of some class to train on."""
    if "train" not in splits:
        return []
    classes = set(class_folders(splits["train"]))
    missing = {
        split: sorted(classes - set(class_folders(path)))
        for split, path in splits.items()
        if labeled(splits, split)
    }
    return [
        f"the {split} split has no images of {', '.join(names[:5])}"
        for split, names in missing.items()
        if names
    ]


def labeled(splits: Mapping[str, Path], split: str) -> bool:
    """Return whether a split has folders of classes; one folder of another name (`test/unknown`) is none."""
    names = set(class_folders(splits[split]))
    first = next(iter(splits.values()))
    return bool(names) and not (len(names) == 1 and not names & set(class_folders(first)))
