"""The parts of a data set that training needs, train, validation and test, and images that two share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from runtime.command.file_kinds import detect_file_kind
from runtime.images.find_images import SkippedFiles, describe_skipped
from runtime.text import format_count
from vit.data.datasets import DataError, Images, find_splits, open_images, split_images
from vit.data.folders import describe_unread_folders, find_layout, find_tables
from vit.data.idx import find_idx
from vit.data.tables import is_table

MOST_DIGESTS = 100_000  # images whose digests a checkpoint keeps: 1.5 MB


@dataclass(frozen=True)
class TrainingData:
    """Images to train on, to choose the best epoch by, and to test on."""

    train: Images
    val: Images | None  # chooses the best epoch; None keeps the last epoch
    test: Images | None  # looked at once, when training has ended
    notes: tuple[str, ...] = ()  # one per entry of the folder that was skipped

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        if self.train.labels is None:
            raise DataError(f"{self.train.name}: images without classes; nothing can be learned from them")
        return self.train.labels

    def describe(self) -> str:
        """Return which images are read for what, with the folder of each split."""
        parts = [f"{format_count(len(self.train), 'image')} to train on from {self.train.name}"]
        if self.val is not None:
            held_out = self.val.name == self.train.name
            where = "held out of the same" if held_out else f"from {self.val.name}"
            parts.append(f"{len(self.val)} to choose the epoch by, {where}")
        if self.test is not None:
            parts.append(f"{len(self.test)} to test on from {self.test.name}")
        return "; ".join(parts)


def targets_of(images: Images) -> np.ndarray:
    """Return the class indices of images whose classes are known, int64 [N].

    Raises:
        DataError: for images without classes.
    """
    if images.targets is None:
        raise DataError(f"{images.name}: images without classes; expected a folder for each class")
    return images.targets


def describe_left_out(*parts: Images | None) -> tuple[str, ...]:
    """Return a sentence about the files in folders that are no images, or none.

    Args:
        parts: images of one or more folders; None for a part that does not exist.
    """
    together = SkippedFiles.merge(part.left_out for part in parts if part is not None)
    line = describe_skipped(together.counts)
    return (f"{line}; to use them, convert them to JPEG or PNG",) if line else ()


def open_data(source: Path | str, *, holdout: float, seed: int = 0) -> TrainingData:
    """Open the images of `source`, with its own val split, or else a share of the training images held out.

    Args:
        source: as in `open_images`.
        holdout: share of the training images that becomes the val split where there is none; 0: no val split.
        seed: of the random choice.

    Returns:
        Training, validation and test images, the last two only where there are any.

    Raises:
        DataError: when there are no classes to learn.
    """
    if Path(source).is_file() and not is_table(source):
        words = detect_file_kind(source)[1]
        raise DataError(
            f"{source}: expected a folder of images with a folder per class, found {words}; give PHOTOS "
            "where the images are PHOTOS/<class>/…, unpacked, or a table of images and labels (.csv, .jsonl)"
        )
    splits = find_splits(source)
    if splits and "train" not in splits:
        folder = Path(source)
        others = find_layout(folder).others if folder.is_dir() and not find_idx(folder) else ()
        beside = f" ({', '.join(others[:5])} beside them: no split)" if others else ""
        raise DataError(
            f"{source}: has {' and '.join(splits)} images and none to train on{beside}; add a train folder, "
            "or give one of them"
        )
    train = open_images(source, "train" if "train" in splits else "all")
    if train.targets is None or train.labels is None:
        tables = find_tables(Path(source)) if Path(source).is_dir() else []
        unread = f" ({', '.join(tables[:3])}: not read, folders say the classes)" if tables else ""
        raise DataError(
            f"{source}: images without classes{unread}; expected {source}/<class>/… or "
            f"{source}/train/<class>/…"
        )
    test = open_images(source, "test") if "test" in splits else None
    test = None if test is None or test.targets is None else test
    val = open_images(source, "val") if "val" in splits else None
    notes = (*describe_unread_folders(source), *describe_left_out(train, val, test))
    val = None if val is None or val.targets is None else val
    if val is not None or not holdout:
        return TrainingData(train, val, test, notes)
    train, val = split_images(train, holdout, seed)
    if not len(val):
        few = f"no validation images: no class has enough for a share of {holdout:g} (holdout)"
        return TrainingData(train, None, test, (*notes, f"{few}; the last epoch is kept"))
    return TrainingData(train, val, test, notes)


# --- Images that are in two classes or two splits ---


def digest_images(images: Images) -> list[str]:
    """Return the digest of each image's file or pixels, 12 hexadecimal digits; empty where unreadable.

    A later step recognizes by them the images that a model was trained on.

    Args:
        images: of any kind; files are read.
    """
    found = []
    for item in images.items:
        try:
            data = item.read_bytes() if isinstance(item, Path) else np.ascontiguousarray(item).tobytes()
        except OSError:
            data = b""
        found.append(blake2b(data, digest_size=6).hexdigest() if data else "")
    return found


def describe_duplicates(data: TrainingData, digests: Sequence[str]) -> list[str]:
    """Return a sentence about images in two classes, and one per split whose images are trained on too.

    `digests` are those of the training images, as `digest_images` returns them.
    """
    train = data.train
    first: dict[str, int] = {}
    twice = []
    for index, digest in enumerate(digests):
        other = first.setdefault(digest, index)
        if digest and train.targets is not None and np.any(train.targets[other] != train.targets[index]):
            twice.append((other, index))
    sentences = []
    if twice:
        where = "with other labels" if train.several else "in two classes"
        one, two = (train.describe(index) for index in twice[0])
        sentences.append(
            f"{where}: {format_count(len(twice), 'image')}, e.g. {one} and {two}; take one of each out"
        )
    for name, images in (("validation", data.val), ("test", data.test)):
        others = () if images is None else digest_images(images)
        if shared := sum(bool(digest) and digest in first for digest in others):
            of = format_count(len(others), f"{name} image")
            sentences.append(f"trained on too: {shared:,} of {of}; take them out of one")
    return sentences
