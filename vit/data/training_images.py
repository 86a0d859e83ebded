"""The three parts of a data set that training needs: train, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.command.file_kinds import detect_file_kind
from runtime.images.find_images import LeftOut, left_out_line
from runtime.text import counted
from vit.data.datasets import DataError, Images, open_images, passed_over, split_images, splits_of
from vit.data.folders import layout_of, tables_in
from vit.data.idx import find_idx


@dataclass(frozen=True)
class TrainingData:
    """Parts of a data set: images to train on, to choose the best epoch by, and to test on."""

    train: Images
    val: Images | None  # chooses the best epoch; None keeps the last epoch
    test: Images | None  # looked at once, when training has ended
    notes: tuple[str, ...] = ()  # what was passed over in the folder

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        if self.train.labels is None:
            raise DataError(f"{self.train.name}: images without classes; nothing can be learned from them")
        return self.train.labels

    def describe(self) -> str:
        """Return which images are read for what, with the folder of each split."""
        parts = [f"{counted(len(self.train), 'image')} to train on from {self.train.name}"]
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


def left_out_notes(*parts: Images | None) -> tuple[str, ...]:
    """Return a sentence about the files in folders that are no part of some images, or none.

    Args:
        parts: images of one or more folders; None stands for a part that there is not.
    """
    together = LeftOut.of(part.left_out for part in parts if part is not None)
    line = left_out_line(together.counts)
    return (f"{line}; to use them, convert them to JPEG or PNG",) if line else ()


def open_data(source: Path | str, *, holdout: float, seed: int = 0) -> TrainingData:
    """The images of `source`, with its own val split, or else a share of the training images held out.

    Raises:
        DataError: when there are no classes to learn.
    """
    if Path(source).is_file():
        words = detect_file_kind(source)[1]
        raise DataError(
            f"{source}: expected a folder of images with a folder per class, found {words}; give PHOTOS "
            "where the images are PHOTOS/<class>/…, unpacked"
        )
    splits = splits_of(source)
    if splits and "train" not in splits:
        folder = Path(source)
        others = layout_of(folder).others if folder.is_dir() and not find_idx(folder) else ()
        beside = f" ({', '.join(others[:5])} beside them: no split)" if others else ""
        raise DataError(
            f"{source}: has {' and '.join(splits)} images and none to train on{beside}; add a train folder, "
            "or give one of them"
        )
    train = open_images(source, "train" if "train" in splits else "all")
    if train.targets is None or train.labels is None:
        tables = tables_in(Path(source)) if Path(source).is_dir() else []
        unread = f" ({', '.join(tables[:3])}: not read, folders say the classes)" if tables else ""
        raise DataError(
            f"{source}: images without classes{unread}; expected {source}/<class>/… or "
            f"{source}/train/<class>/…"
        )
    test = open_images(source, "test") if "test" in splits else None
    test = None if test is None or test.targets is None else test
    val = open_images(source, "val") if "val" in splits else None
    notes = (*passed_over(source), *left_out_notes(train, val, test))
    if val is not None and val.targets is not None:
        return TrainingData(train, val, test, notes)
    if not holdout:
        return TrainingData(train, None, test, notes)
    train, val = split_images(train, holdout, seed)
    if not len(val):
        few = f"no validation images: no class has enough for a share of {holdout:g} (holdout)"
        return TrainingData(train, None, test, (*notes, f"{few}; the last epoch is kept"))
    return TrainingData(train, val, test, notes)
