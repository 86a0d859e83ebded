"""Folders of images as people keep them: which are splits, which are classes, and what is skipped."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.images.find_images import image_suffixes, is_folder, is_system_file
from runtime.text import format_count
from vit.data.idx import find_idx

# Usual spellings of each split; case, and "-", "_" or a space between words, do not matter.
SPELLINGS = {
    "train": (
        *("train", "training", "trainset", "traindata", "trainingset", "trainingdata", "trainimages"),
        "trainval",
    ),
    "val": (
        *("val", "valid", "validation", "validate", "dev", "valset", "validset", "validationset"),
        *("valdata", "validdata", "validationdata", "devset", "valimages"),
    ),
    "test": ("test", "testing", "testset", "testdata", "testingset", "testingdata", "testimages"),
}
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_FILLERS = frozenset(("set", "data", "dataset", "image", "images", "split"))  # beside the word for a split
# Parts of a data set, which are no classes where no other folder is beside them.
_PARTS = frozenset(
    {"image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels", "annotation"}
    | {"annotations", "segmentation", "segmentations", "trimaps", "meta", "attributes", "parts"}
)
_FOLD = re.compile(r"(k?fold|cv|split)[-_ ]?\d+", re.IGNORECASE)
# Tables and lists of labels or splits, by suffix, and by suffix where the name has one of these words.
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")
_LISTS = (".txt", ".json", ".lst")
_LISTED = frozenset(("split", "splits", "fold", "folds", "label", "labels", "classes", "annotations"))


class DataError(InputError):
    """Images that cannot be used; the message names the path and what was expected there."""


@dataclass(frozen=True)
class Layout:
    """Content of a folder.

    Attributes:
        splits: the folder of each split; none for one folder of classes, or of loose images.
        others: folders beside those of splits.
        notes: one sentence per entry that is skipped.
    """

    splits: dict[str, Path]
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_layout(folder: Path) -> Layout:
    """Find the splits in a folder.

    A folder named as a split is one when it holds folders of its own, or only splits are beside it,
    or another split does; among other folders of images, `train` is a class. Names such as `seg_train` are
    splits where `seg_test` is beside them. Two folders of one split are refused, and folders that are no
    classes: splits in each, the same folders in each, the folds of a cross-validation.
    """
    inside = list_subfolders(folder)
    named = _find_splits(folder, inside)
    others = [path for path in inside if path not in [path for _, path in named]]
    kinds = {split for split, _ in named}
    if len(kinds) == 1 and not any(list_subfolders(path) for _, path in named):
        if others:
            names = ", ".join(path.name for _, path in named)
            return Layout({}, notes=(f"{names}: taken as a class, like the folders beside it",))
        if kinds != {"train"} and len(named) == 1:
            named = []
    loose = _describe_loose(folder, inside)
    if not named:
        _refuse_no_classes(folder, inside)
        return Layout({}, notes=loose)
    found: dict[str, Path] = {}
    for split, path in named:
        if split in found:
            both = f"{found[split].name} and {path.name} both mean the {split} split"
            raise DataError(f"{folder}: {both}; rename or remove one of them")
        found[split] = path
    ordered = {split: found[split] for split in SPELLINGS if split in found}
    beside = tuple(path.name for path in others)
    skipped = (f"{name}: skipped, it is no split" for name in beside)
    return Layout(_unwrap(ordered), beside, (*skipped, *loose))


def split_of(name: str) -> str | None:
    """Return the split that a folder's name means, or None: `Validation-Set` is val."""
    return _SPLIT_OF.get(name.strip().casefold().replace("-", "").replace("_", "").replace(" ", ""))


def _find_splits(folder: Path, inside: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the folders that are named as splits, each with the split that it means.

    A name with another word in it (`seg_train`, `flowers-val`) counts where the same word is beside
    another split, since `steam train` is a class.
    """
    groups: dict[str, list[tuple[str, Path]]] = {"": []}
    for path in inside:
        split, rest = _meaning(path.name)
        if split is not None:
            groups.setdefault(rest, []).append((split, path))
    if any(split_of(path.name) for _, path in groups[""]):
        return groups[""]
    whole = [group for group in groups.values() if {"train"} < {split for split, _ in group}]
    if len(whole) > 1:
        names = ", ".join(path.name for group in whole for _, path in group)
        expected = "expected train/<class>/… and test/<class>/…"
        raise DataError(f"{folder}: {names} name a split and something else; {expected}")
    return whole[0] if whole else []


def _meaning(name: str) -> tuple[str | None, str]:
    """Return the one split that a name contains, or None, and the rest of its words without numbers."""
    if (split := split_of(name)) is not None:
        return split, ""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    rest = " ".join(word for word in words if word not in _SPLIT_OF and word not in _FILLERS)
    return (splits.pop() if len(splits) == 1 else None), rest


def _unwrap(splits: dict[str, Path]) -> dict[str, Path]:
    """Return the folders of classes where splits are packed in a folder: `test_set/test_set`."""
    classes: set[str] = set()
    found = {}
    for split, path in splits.items():
        found[split] = _without_wrapper(path, classes)
        classes = classes or {each.name for each in list_subfolders(found[split])}
    return found


def _without_wrapper(path: Path, classes: Collection[str] = ()) -> Path:
    """Return the folder inside, as long as it is the only one, is none of `classes` and holds folders."""
    inside = list_subfolders(path)
    if len(inside) != 1 or inside[0].name in classes or not list_subfolders(inside[0]):
        return path
    alone = len(list_subfolders(inside[0])) == 1 and split_of(inside[0].name) != split_of(path.name)
    return path if alone and not classes else _without_wrapper(inside[0], classes)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones and those that systems leave behind."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if _is_folder(each) and not is_system_file(each.name)]
    except OSError as error:
        why = f"it cannot be listed ({error.strerror})"
        raise DataError(f"{folder}: {why}; allow it, or move it away") from error
    return [folder / name for name in sorted(names)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a folder or a link to one; files need no access to the disk."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and is_folder(entry.path))


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each class, named in Unicode's composed form: a Mac's "café" is Linux's."""
    found: dict[str, Path] = {}
    for path in list_subfolders(folder):
        name = unicodedata.normalize("NFC", path.name)
        if (first := found.setdefault(name, path)) is not path:
            raise DataError(f"{path}: looks like {first.name} beside it; put their images into one folder")
    return dict(sorted(found.items()))


def _refuse_no_classes(folder: Path, inside: Sequence[Path]) -> None:
    """Refuse folders that are splits by another name, or hold the splits, and no classes."""
    packed = {path: within for path in inside if (within := list_subfolders(path))}
    if holders := [path for path, within in packed.items() if _holds_splits(within)]:
        _refuse_inner_splits(folder, holders, packed[holders[0]])
    if len(inside) > 1 and all(path.name.casefold() in _PARTS for path in inside):
        raise DataError(
            f"{folder}: {_some(inside)} look like the parts of a data set, not like classes; give the folder "
            "that holds a folder of images for each class"
        )
    names = [{each.name.casefold() for each in list_subfolders(_without_wrapper(path))} for path in packed]
    shared = sorted(set.intersection(*names)) if len(names) > 1 else []
    if len(shared) >= 2:
        raise DataError(
            f"{folder}: {_some(list(packed))} all hold the folders {', '.join(shared[:5])}, so those look "
            "like the classes; rename the outer folders to train, val and test, or give one of them"
        )
    if len(inside) > 1 and all(_FOLD.fullmatch(path.name) for path in inside):
        raise DataError(
            f"{folder}: {_some(inside)} look like the folds of a cross-validation, not like classes; "
            "expected train/<class>/… and val/<class>/…"
        )


def _holds_splits(within: Sequence[Path]) -> bool:
    """Return whether folders are the splits of a data set, and no classes."""
    splits = [split_of(path.name) for path in within]
    if None in splits or "train" not in splits:
        return False
    return len(set(splits)) > 1 or any(list_subfolders(path) for path in within)


def _refuse_inner_splits(folder: Path, holders: Sequence[Path], within: Sequence[Path]) -> None:
    splits = ", ".join(path.name for path in within)
    if len(list_subfolders(folder)) == 1:
        advice = f"expected a folder for each of two or more classes, found only {holders[0].name!r}"
        raise DataError(f"{folder}: {advice}; give {holders[0]}, which holds {splits}")
    if any(list_subfolders(path) for path in within):
        advice = "give one of them" if len(holders) > 1 else f"give {holders[0]}"
    else:
        advice = "expected the splits outside, train/<class>/… and test/<class>/…"
    raise DataError(f"{folder}: inside {_some(holders)} are the splits {splits}; {advice}")


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:5])


def _describe_loose(folder: Path, inside: Sequence[Path]) -> tuple[str, ...]:
    """Return a sentence about images that lie beside the folders and belong to none, and one per table."""
    if not inside:
        return ()
    files = [path for path in folder.iterdir() if path.is_file() and not is_system_file(path.name)]
    loose = sum(path.suffix.lower() in image_suffixes() for path in files)
    notes = (f"{format_count(loose, 'image')} beside the folders of {folder}: skipped",) if loose else ()
    tables = find_tables(folder)
    return (*notes, *(f"{folder / name}: not read, folders say the classes and splits" for name in tables))


def find_tables(folder: Path) -> list[str]:
    """Return the names of files in a folder that may list classes or splits, which nothing here reads."""
    names = sorted(path.name for path in folder.iterdir() if not is_system_file(path.name))
    return [name for name in names if _is_table(Path(name.casefold()))]


def _is_table(name: Path) -> bool:
    words = re.findall(r"[^\W\d_]+", name.stem)
    fits = any(word in _SPLIT_OF or word in _LISTED for word in words)
    return name.suffix in _TABLES or (name.suffix in _LISTS and fits)


def describe_wrapper(folder: Path) -> str:
    """Return advice for a folder whose only folder holds what was expected of it; else an empty text."""
    inside = folder
    while len(found := list_subfolders(inside)) == 1:
        inside = found[0]
    return f"; give {inside}, which holds {', '.join(p.name for p in found[:4])}" if found else ""


def describe_unread_folders(source: Path | str) -> tuple[str, ...]:
    """Return one sentence per entry of a folder that is no part of the data set, or part of another class.

    Args:
        source: as in `vit.data.datasets.open_images`.
    """
    folder = Path(source)
    if not folder.is_dir() or find_idx(folder):
        return ()
    layout = find_layout(folder)
    unlabeled = [
        f"the {split} split: skipped, its images are in no folders of classes"
        for split in layout.splits
        if split != "train" and not has_classes(layout.splits, split)
    ]
    loose = [note for path in layout.splits.values() for note in _describe_loose(path, list_subfolders(path))]
    classes = [p for each in layout.splits.values() or [folder] for p in class_folders(each).values()]
    inside = [(each, p) for each in classes for p in list_subfolders(each)]
    links = [str(p) for _, p in inside if p.is_symlink()]
    linked = [f"{', '.join(links[:3])}: skipped, a link to a folder"] if links else []
    more = (*_describe_inner(inside), *_describe_missing(layout.splits))
    return (*layout.notes, *loose, *unlabeled, *linked, *more)


def _describe_inner(inside: Sequence[tuple[Path, Path]]) -> list[str]:
    """Return one sentence per class with folders inside, whose images count as the class's."""
    found: dict[Path, list[str]] = {}
    for each, path in inside:
        if not path.is_symlink():
            found.setdefault(each, []).append(path.name)
    return [
        f"{each.name}: the images of its folders {', '.join(names[:4])} are all of the class {each.name!r}"
        for each, names in list(found.items())[:3]
    ]


def _describe_missing(splits: Mapping[str, Path]) -> list[str]:
    """Return one sentence per split that has no images of a class to train on."""
    if "train" not in splits:
        return []
    classes = set(class_folders(splits["train"]))
    return [
        f"the {split} split has no images of {', '.join(missing[:5])}"
        for split, path in splits.items()
        if has_classes(splits, split) and (missing := sorted(classes - set(class_folders(path))))
    ]


def has_classes(splits: Mapping[str, Path], split: str) -> bool:
    """Return whether a split has folders of classes; a single one with an unknown name is none."""
    names = set(class_folders(splits[split]))
    first = next(iter(splits.values()))
    return bool(names) and not (len(names) == 1 and not names & set(class_folders(first)))
