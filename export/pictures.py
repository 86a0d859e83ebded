"""Which pictures calibrate and which measure; never the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit.data import DataError, Pictures, Split, open_pictures, split_pictures, splits_of


@dataclass(frozen=True)
class ExportPictures:
    """Disjoint sets: to calibrate, and to measure with for the report."""

    calibration: Pictures
    evaluation: Pictures
    note: str  # where the evaluation pictures came from, for the report

    def targets(self, labels: tuple[str, ...]) -> np.ndarray | None:
        """The evaluation pictures' classes as indices into the model's labels, or None for loose pictures.

        Raises:
            DataError: when the folders' classes are not the model's.
        """
        found = self.evaluation
        if found.targets is None or found.labels is None:
            return None
        if found.labels == labels:
            return found.targets
        if unknown := [label for label in found.labels if label not in labels]:
            raise DataError(
                f"{found.name}: the class {unknown[0]!r} ({len(found.labels)} classes) is not one of the "
                f"model's {len(labels)} labels; give folders named as the model's classes, or loose pictures"
            )
        index = np.array([labels.index(label) for label in found.labels], np.int64)
        return np.asarray(index[found.targets])


def choose_pictures(
    calibration: str | Path,
    evaluation: str | Path | None,
    *,
    samples: int,
    evaluation_samples: int | None,
    seed: int = 0,
) -> ExportPictures:
    """Open the sources; without an evaluation source, measure on what calibration is not given.

    Args:
        samples: how many pictures calibrate; at most half of them where the same source also measures.
        evaluation_samples: how many pictures measure at most; None for all.

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
    calibrate = pool if len(pool) <= samples else sample(pool, samples, seed)
    if evaluation_samples is not None and len(measure) > evaluation_samples:
        measure = sample(measure, evaluation_samples, seed)
    _must_not_overlap(calibrate, measure)
    return ExportPictures(calibrate, measure, note)


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


def relabelled(pictures: Pictures, targets: np.ndarray | None, labels: tuple[str, ...]) -> Pictures:
    """The same pictures with the model's own class indices."""
    return replace(pictures, targets=targets, labels=labels if targets is not None else None)
