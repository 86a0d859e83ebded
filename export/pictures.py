"""Which pictures calibrate and which measure; never the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit.data import DataError, Pictures, Split, open_pictures, split_pictures, splits_of

SEARCH_SHARE, SEARCH_PICTURES = 0.25, 512  # of the calibration source, to search a plan with


@dataclass(frozen=True)
class ExportPictures:
    """Disjoint sets: to calibrate, to measure with for the report, and to search a plan with."""

    calibration: Pictures
    evaluation: Pictures
    note: str  # where the evaluation pictures came from, for the report
    search: Pictures | None = None


def labelled_as(pictures: Pictures, labels: tuple[str, ...]) -> Pictures:
    """The same pictures with the model's own class indices; without classes when they are loose.

    Raises:
        DataError: when the folders' classes are not the model's.
    """
    if pictures.targets is None or pictures.labels is None:
        return replace(pictures, targets=None, labels=None)
    if pictures.labels == labels:
        return pictures
    if unknown := [label for label in pictures.labels if label not in labels]:
        raise DataError(
            f"{pictures.name}: the class {unknown[0]!r} ({len(pictures.labels)} classes) is not one of the "
            f"model's {len(labels)} labels; give folders named as the model's classes, or loose pictures"
        )
    index = np.array([labels.index(label) for label in pictures.labels], np.int64)
    return replace(pictures, targets=index[pictures.targets], labels=labels)


def choose_pictures(
    calibration: str | Path,
    evaluation: str | Path | None,
    *,
    samples: int,
    evaluation_samples: int | None,
    search: bool = False,
    seed: int = 0,
) -> ExportPictures:
    """Open the sources; without an evaluation source, measure on what calibration is not given.

    Args:
        samples: how many pictures calibrate; at most half of them where the same source also measures.
        evaluation_samples: how many pictures measure at most; None for all.
        search: whether a plan is searched for, which takes pictures of its own from the calibration source:
            what is left of it, or a quarter when nothing would be.

    Raises:
        DataError: for a source without pictures, or too few to share out.
    """
    own_splits = splits_of(calibration)
    pool = open_pictures(calibration, "train" if "train" in own_splits else "all")
    held_out: tuple[Split, ...] = ("test", "val")
    measured_on = next((split for split in held_out if split in own_splits), None)
    if evaluation is not None:
        splits = splits_of(evaluation)
        split: Split = next((each for each in held_out if each in splits), "all")
        measure, note = open_pictures(evaluation, split), "pictures of their own"
    elif measured_on is not None and "train" in own_splits:
        measure, note = open_pictures(calibration, measured_on), f"the {measured_on} split of the same source"
    else:
        if len(pool) < 2:
            raise DataError(f"{pool.name}: one picture cannot both calibrate and measure; give at least two")
        samples = min(samples, len(pool) // 2)
        pool, measure = split_pictures(pool, 1 - samples / len(pool), seed)
        note = "the pictures of the same source that calibration was not given"
    searched = None
    if search:
        if len(pool) < 2:
            raise DataError(f"{pool.name}: one picture cannot both calibrate and search; give at least two")
        share = max(1 - samples / len(pool), SEARCH_SHARE, 1 / len(pool))
        pool, searched = split_pictures(pool, share, seed + 1)
        if not len(searched):
            raise DataError(f"{pool.name}: a search needs two pictures a class at least, some to calibrate")
        searched = sample(searched, min(len(searched), SEARCH_PICTURES), seed)
    calibrate = pool if len(pool) <= samples else sample(pool, samples, seed)
    if evaluation_samples is not None and len(measure) > evaluation_samples:
        measure = sample(measure, evaluation_samples, seed)
    for used in (calibrate, searched):
        if used is not None:
            _must_not_overlap(used, measure)
    return ExportPictures(calibrate, measure, note, searched)


def sample(pictures: Pictures, count: int, seed: int) -> Pictures:
    """`count` pictures at random, the classes in turn so that each is seen."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(pictures))
    if pictures.targets is not None:
        # Rank within the class first: all first pictures of each class, then all second ones, …
        rank = np.zeros(len(order), np.int64)
        for target in np.unique(pictures.targets):
            members = np.flatnonzero(pictures.targets[order] == target)
            rank[members] = np.arange(len(members))
        order = order[np.argsort(rank, kind="stable")]
    return pictures.subset(np.sort(order[:count]))


def _must_not_overlap(calibration: Pictures, evaluation: Pictures) -> None:
    files = {item.resolve() for item in calibration.items if isinstance(item, Path)}
    shared = [item for item in evaluation.items if isinstance(item, Path) and item.resolve() in files]
    if shared:
        raise DataError(
            f"{shared[0]}: calibrates and measures ({len(shared)} such pictures); "
            "give --evaluate other pictures"
        )
