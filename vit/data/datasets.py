"""Images to train on, to calibrate with and to measure with: folders, IDX files, and digits.

Files are found here and decoded by `runtime.images`. Nothing needs torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from runtime.command.file_kinds import Kind, refuse_kinds
from runtime.images.find_images import SkippedFiles, find_images, image_suffixes, suffix_of
from runtime.text import format_count, suggest
from vit.data.folders import DataError as DataError
from vit.data.folders import class_folders, describe_wrapper, find_layout, has_classes
from vit.data.idx import find_idx, idx_labels, read_idx
from vit.data.public import public_name
from vit.data.tables import find_rarest_labels, is_table, read_table

Item = Path | np.ndarray
Split = Literal["train", "val", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
WORDS = ("digits", "fashion-mnist")  # data sets that are named by a word
GIVE_A_FOLDER = "give a folder of images"
MOST_LISTED = 3  # names in one sentence
DIGITS_TEST = 360
# Kinds of files that are no images; of an unknown kind may be a photo of a camera.
NO_IMAGES: tuple[Kind, ...] = (
    *("onnx", "safetensors", "zip", "archive", "array", "pickle", "page", "pointer", "text", "others"),
    *("empty", "device"),
)


@dataclass(frozen=True)
class Images:
    """Some images, with their classes where these are known.

    Attributes:
        items: paths, or arrays `uint8 [H, W, 3]`.
        targets: class indices, int64 `[N]`; of images with several labels each, which classes an image has,
            bool `[N, classes]`; None where the classes are not known.
        labels: one per class; None where the classes are not known.
        name: of the data set or its folder.
        left_out: files in the folders that are no images.
        same_name: the first class of each class's name, int64 `[classes]`, where several have one name and a
            folder of that name means any of them; None where a target means itself alone.
    """

    items: Sequence[Item]
    targets: np.ndarray | None
    labels: tuple[str, ...] | None
    name: str
    left_out: SkippedFiles = field(default_factory=SkippedFiles, compare=False, repr=False)
    same_name: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def subset(self, indices: Iterable[int]) -> Images:
        """Return the images at `indices`, in that order, with the same labels."""
        chosen = np.asarray(list(indices), np.int64)
        targets = None if self.targets is None else self.targets[chosen]
        return replace(self, items=[self.items[i] for i in chosen], targets=targets)

    @property
    def several(self) -> bool:
        """True if an image may have several labels, or none."""
        return self.targets is not None and self.targets.ndim == 2

    @property
    def strata(self) -> np.ndarray | None:
        """The class of each image, of several the rarest, int64 [N]: for samples with a share of each."""
        return find_rarest_labels(self.targets) if self.targets is not None and self.several else self.targets

    @property
    def truth(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The true classes, and which classes share a name: what measures of accuracy take."""
        return self.targets, self.same_name

    def settle(self, classes: np.ndarray) -> np.ndarray:
        """Return predicted classes, in which the true class replaces another class of its name.

        Args:
            classes: class indices, int64 `[N]`.

        Returns:
            int64 `[N]`; equal to `targets` exactly where an answer is right.
        """
        if self.targets is None or self.same_name is None:
            return classes
        return np.where(self.same_name[classes] == self.same_name[self.targets], self.targets, classes)

    def describe(self, index: int) -> str:
        """Return a name for one image: its path, or the data set and the index."""
        item = self.items[index]
        return str(item) if isinstance(item, Path) else f"{self.name}, image {index}"

    def public_name(self, index: int) -> str:
        """Return a name for one image that may leave this machine."""
        item = self.items[index]
        if isinstance(item, Path):
            return public_name(str(item))
        return f"{public_name(self.name)}, image {index}"


def open_images(source: Path | str, split: Split = "all") -> Images:
    """Find the images of a data set; files are listed and not yet decoded.

    Args:
        source: one of
            a folder of splits (`train/<class>/*.jpg`, and `val` or `test`, or what else these are called),
            a folder of classes (`<class>/*.jpg`; "train" and "val" are then a fixed stratified 80 and 20 %),
            a folder of loose images, or one image (no targets, and only the split "all"),
            a folder of IDX files (MNIST, Fashion-MNIST),
            a table with several labels per image (.csv, .jsonl: `vit.data.tables`),
            "fashion-mnist" (the folder of Debian's package) or "digits" (scikit-learn's).
        split: which part; "all" takes all parts together.

    Returns:
        Paths or arrays, with their classes where folders or labels give these.

    Raises:
        DataError: naming the path, what was expected and what was found.
    """
    if split not in (*SPLITS, "all"):
        raise DataError(f"split must be one of train, val, test, all; found {split!r}")
    if str(source) == "digits":
        return _open_digits(split)
    if is_table(source):
        return _open_table(Path(source), split)
    folder = FASHION_FOLDER if str(source) == "fashion-mnist" else Path(source)
    if not folder.exists():
        hint = "install Debian's dataset-fashion-mnist" if folder == FASHION_FOLDER else GIVE_A_FOLDER
        raise DataError(f"{folder}: no such file or folder; {hint}{suggest(str(source), WORDS)}")
    if find_idx(folder):
        return _open_idx(folder, split)
    if suffix_of(folder.name) not in image_suffixes():
        refuse_kinds(folder, NO_IMAGES, "a folder of images", "give the folder that they are in, unpacked")
    return _open_folder(folder, split)


def find_splits(source: Path | str) -> tuple[Split, ...]:
    """Return the splits of a data set; none for one folder of classes or of loose images.

    Args:
        source: as in `open_images`.
    """
    if str(source) == "digits":
        return ("train", "test")
    if is_table(source):
        named = {row.split for row in read_table(Path(source))}
        return tuple(split for split in SPLITS if split in named)
    folder = FASHION_FOLDER if str(source) == "fashion-mnist" else Path(source)
    if idx := find_idx(folder):
        return tuple(split for split in SPLITS if split in idx)
    return tuple(split for split in SPLITS if folder.is_dir() and split in find_layout(folder).splits)


def refuse_among_classes(out: Path, source: str) -> None:
    """Refuse a folder to write to among the classes of a data set: its plots would be images of a class."""
    folder, place = Path(source).resolve(), out.resolve()
    if not folder.is_dir():
        return
    # A folder beside the splits is skipped; one in a split, or in what a split is packed in, is not.
    splits = {path.resolve().relative_to(folder).parts[0] for path in find_layout(folder).splits.values()}
    if place.is_relative_to(folder) and (not splits or {*place.relative_to(folder).parts[:1]} & splits):
        here = f"lies in {source} and would be a class of it the next time"
        raise DataError(f"{out}: {here}; choose another --out")


def split_images(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Split at random, each class in proportion; every class keeps at least one image in the first part.

    Args:
        images: without targets the split is plain random.
        share: of the images that go to the second part, between 0 and 1.
        seed: of the random choice.

    Returns:
        The first and the second part.

    Raises:
        DataError: when share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise DataError(f"share must be between 0 and 1, found {share}")
    random = np.random.default_rng(seed)
    targets = np.zeros(len(images), np.int64) if images.strata is None else images.strata
    second: list[int] = []
    for target in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == target))
        second.extend(members[: min(round(len(members) * share), len(members) - 1)])
    chosen = np.sort(np.asarray(second, np.int64))
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    return images.subset(rest), images.subset(chosen)


def _open_digits(split: Split) -> Images:
    """Return scikit-learn's 1,797 digits of 8x8: 1,437 to train and 360 to test, stratified and fixed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    gray = np.round(data.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    everything = Images(_to_rgb(gray), data.target.astype(np.int64), tuple("0123456789"), "digits")
    if split == "val":
        raise DataError("digits: has no val split; it has train and test")
    if split == "all":
        return everything
    # A plain stratified share would round each class for itself and miss 360 by a few.
    order = np.random.default_rng(0).permutation(len(everything))
    order = order[np.argsort(everything.targets[order], kind="stable")]  # type: ignore[index]
    test = np.sort(order[np.linspace(0, len(order) - 1, DIGITS_TEST).round().astype(np.int64)])
    chosen = test if split == "test" else np.setdiff1d(np.arange(len(everything)), test)
    return replace(everything.subset(chosen), name=f"digits {split}")


def _open_table(file: Path, split: Split) -> Images:
    table = read_table(file)
    labels = tuple(sorted(frozenset[str]().union(*(row.labels for row in table))))
    rows = [row for row in table if split in ("all", row.split)]
    if not rows:
        raise DataError(f"{file}: has no image of the {split} split; name it in the column split")
    sets = np.array([[label in row.labels for label in labels] for row in rows], bool)
    return Images([row.file for row in rows], sets, labels, str(file))


def _open_idx(folder: Path, split: Split) -> Images:
    found = find_idx(folder)
    wanted = list(found) if split == "all" else [split]
    if missing := [name for name in wanted if name not in found]:
        raise DataError(f"{folder}: has no {missing[0]} split; it has {', '.join(found)}")
    try:
        images = np.concatenate([read_idx(found[name][0]) for name in wanted])
        targets = np.concatenate([read_idx(found[name][1]) for name in wanted])
    except ValueError as error:
        raise DataError(str(error)) from error
    if images.ndim != 3 or targets.ndim != 1 or len(images) != len(targets):
        raise DataError(f"{folder}: {images.shape} images do not go with {targets.shape} labels")
    labels = idx_labels(folder, int(targets.max()) + 1)
    return Images(_to_rgb(images), targets.astype(np.int64), labels, f"{folder.name} {split}")


def _to_rgb(gray: np.ndarray) -> list[np.ndarray]:
    """Return gray `[N, H, W]` as N views `[H, W, 3]` that share its memory."""
    return list(np.broadcast_to(gray[..., None], (*gray.shape, 3)))


def _open_folder(folder: Path, split: Split) -> Images:
    if folder.is_file():
        return _open_loose(folder, split)
    splits = find_layout(folder).splits
    if not splits:
        return _open_classes_or_loose(folder, split)
    labels = tuple(class_folders(next(iter(splits.values()))))  # train's, which every split shares
    with_classes = [name for name in splits if has_classes(splits, name)]
    if split == "all":
        if not with_classes:
            return _join([_open_loose(path, split) for path in splits.values()], folder)
        return _join([_open_classes(splits[name], labels) for name in with_classes], folder)
    if split not in splits:
        raise DataError(f"{folder}: has no {split} split; it has {', '.join(splits)}")
    path = splits[split]
    return _open_classes(path, labels) if split in with_classes else _open_loose(path, "all")


def _open_classes_or_loose(folder: Path, split: Split) -> Images:
    names = tuple(class_folders(folder))
    if not names:
        return _open_loose(folder, split)
    images = _open_classes(folder, names)
    if split == "all":
        return images
    if split == "test":
        raise DataError(f"{folder}: is one folder of classes and has no test split")
    train, val = split_images(images, 0.2, seed=0)
    return train if split == "train" else val


def _open_classes(folder: Path, labels: tuple[str, ...]) -> Images:
    """Open `folder/<class>/**`; a class of `labels` may be absent here, but an empty folder is an error."""
    folders = class_folders(folder)
    if unknown := sorted(set(folders) - set(labels)):
        same = next((name for name in labels if name.casefold() == unknown[0].casefold()), None)
        advice = f"; rename it to {same}" if same else ""
        others = f"this class is not among those to train on ({', '.join(labels)})"
        raise DataError(f"{folders[unknown[0]]}: {others}{advice}")
    if len(labels) < 2:
        found = (f"only {labels[0]!r}" if labels else "none") + describe_wrapper(folder)
        raise DataError(f"{folder}: expected a folder for each of two or more classes, found {found}")
    items: list[Item] = []
    targets: list[int] = []
    left_out = SkippedFiles()
    for name, path in folders.items():
        paths = list(find_images([path], skipped=left_out))
        if not paths:
            found = f"a class folder without images{left_out.in_brackets()}"
            raise DataError(f"{path}: {found}; fill it or remove it")
        items.extend(paths)
        targets.extend([labels.index(name)] * len(paths))
    if not items:
        raise DataError(f"{folder}: no images here; expected a folder for each class")
    return Images(items, np.asarray(targets, np.int64), labels, str(folder), left_out)


def _open_loose(folder: Path, split: Split) -> Images:
    left_out = SkippedFiles()
    paths: list[Item] = list(find_images([folder], skipped=left_out))
    if not paths:
        expected = "expected images, class folders, or train and test folders"
        raise DataError(f"{folder}: no images here{left_out.in_brackets()}; {expected}")
    if split != "all":
        none = f"there is no {split} split to learn from"
        raise DataError(f"{folder}: has images but no class folders, so {none}")
    return Images(paths, None, None, str(folder), left_out)


def _join(parts: Sequence[Images], folder: Path) -> Images:
    items = [item for part in parts for item in part.items]
    known = [part.targets for part in parts if part.targets is not None]
    targets = np.concatenate(known) if known else None
    left_out = SkippedFiles.merge(part.left_out for part in parts)
    return Images(items, targets, parts[0].labels, str(folder), left_out)


# --- Class indices of a model ---


def match_image_labels(images: Images, labels: tuple[str, ...], *, several: bool = False) -> Images:
    """Return images with a model's own class indices; without classes when images or model have none.

    Where several classes of the model have one name, a folder of that name means any of them.

    Args:
        images: with the class indices of their folders.
        labels: of the model.
        several: the model gives several labels per image: a folder names one of them, so that the classes
            of its images are not known.

    Raises:
        DataError: when the folders' classes are not the model's, or name several and the model gives one.
    """
    if images.targets is None or images.labels is None or not labels:
        return replace(images, targets=None, labels=None)
    if several and not images.several:
        return replace(images, targets=None, labels=None)
    if images.several and (not several or len(set(labels)) < len(labels)):
        expected = "classes of different names" if several else "one label per image, in folders"
        raise DataError(f"{images.name}: has several labels per image, and the model expects {expected}")
    if images.labels == labels:
        return images
    known = set(labels)
    if unknown := [label for label in images.labels if label not in known]:
        count = format_count(len(images.labels), "class", "classes")
        raise DataError(
            f"{images.name}: the class {unknown[0]!r} ({count}) is not one of the model's {len(labels)} "
            "labels; give folders named as the model's classes, or loose images"
        )
    first = {label: index for index, label in reversed(list(enumerate(labels)))}
    index = np.array([first[label] for label in images.labels], np.int64)
    if images.several:
        sets = np.zeros((len(images), len(labels)), bool)
        sets[:, index] = images.targets
        return replace(images, targets=sets, labels=labels)
    same_name = np.array([first[label] for label in labels], np.int64) if len(first) < len(labels) else None
    return replace(images, targets=index[images.targets], labels=labels, same_name=same_name)


def describe_shared_names(images: Images) -> str:
    """Return a sentence about classes of one name that have images here; empty where there are none.

    Args:
        images: with the class indices of a model.
    """
    if images.same_name is None or images.targets is None or images.labels is None:
        return ""
    often = Counter(images.labels)
    twice = [images.labels[target] for target in np.unique(images.targets)]
    twice = [label for label in twice if often[label] > 1]
    if not twice:
        return ""
    named = [
        f"{label!r} ({', '.join(str(index) for index, other in enumerate(images.labels) if other == label)})"
        for label in twice[:MOST_LISTED]
    ]
    more = f" and {len(twice) - MOST_LISTED} more" if len(twice) > MOST_LISTED else ""
    return (
        f"several classes of the model have one name: {', '.join(named)}{more}; an image in a folder of that "
        "name counts as right with any of them"
    )
