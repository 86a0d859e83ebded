"""Choice of the images that calibrate, search and measure; no image is in two sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit.data.datasets import (
    DataError,
    Images,
    Split,
    find_splits,
    match_image_labels,
    open_images,
    split_images,
)
from vit.data.training_images import describe_left_out

HELD_OUT: tuple[Split, ...] = ("test", "val")
SEED = 0  # of the choice of images
SEARCH_SHARE, SEARCH_IMAGES = 0.25, 512  # of the calibration source, to search a plan with


@dataclass(frozen=True)
class ExportImages:
    """Disjoint sets of images: to calibrate, to measure for the report, and to search a plan."""

    calibration: Images
    evaluation: Images
    note: str  # where the evaluation images came from, for the report
    search: Images | None = None
    notes: tuple[str, ...] = ()  # files in the folders that are no images


def use_model_classes(
    images: ExportImages, labels: tuple[str, ...], *, several: bool = False
) -> ExportImages:
    """Give the images that measure and search the class indices of the model.

    A model with several labels per image needs a table: of images in folders of classes nothing is known.

    Raises:
        DataError: when the folders' classes are not the model's.
    """
    measure, search = images.evaluation, images.search
    notes = images.notes
    if several and measure.targets is not None and not measure.several:
        one = "its folders name one label per image, and the model gives several"
        notes += (f"{measure.name}: {one}: measured without known labels; a table has them (.csv, .jsonl)",)
    search = None if search is None else match_image_labels(search, labels, several=several)
    measure = match_image_labels(measure, labels, several=several)
    return replace(images, evaluation=measure, search=search, notes=notes)


def choose_images(
    calibration: str | Path,
    evaluation: str | Path | None,
    *,
    samples: int,
    evaluation_samples: int | None,
    search: bool = False,
) -> ExportImages:
    """Open the sources; without an evaluation source, images of the calibration source measure.

    A source, by folder or name, that also measures gives at most half of its images to calibrate with. The
    search of a plan takes images of its own from the calibration source: what is left of it, or a quarter
    when nothing would be. `evaluation_samples` None measures on all.

    Raises:
        DataError: for a source without images, or too few to share out.
    """
    own_splits = find_splits(calibration)
    everything = pool = open_images(calibration, "train" if "train" in own_splits else "all")
    measured_on = next((split for split in HELD_OUT if split in own_splits), None)
    if evaluation is not None:
        measure, note = _open_held_out(evaluation), "images of their own"
    elif measured_on is not None and "train" in own_splits:
        measure, note = open_images(calibration, measured_on), f"the {measured_on} split of the same source"
    else:
        if len(pool) < 2:
            raise DataError(f"{pool.name}: one image cannot both calibrate and measure; give at least two")
        samples = min(samples, len(pool) // 2)
        pool, measure = _split_pool(pool, 1 - samples / len(pool))
        note = "the images of the same source that calibration was not given"
    pool, searched = _reserve_search(pool, samples) if search else (pool, None)
    calibrate, measure = sample_images(pool, samples), sample_images(measure, evaluation_samples)
    for used in (calibrate, searched):
        if used is not None:
            _check_disjoint(used, measure)
    return ExportImages(calibrate, measure, note, searched, describe_left_out(everything, measure))


def choose_evaluation_images(evaluation: str | Path, count: int | None) -> ExportImages:
    """Open at most `count` images to measure with, where nothing calibrates; they are both sets.

    Raises:
        DataError: for a source without images.
    """
    measure = _open_held_out(evaluation)
    chosen = sample_images(measure, count)
    return ExportImages(chosen, chosen, "images of their own", notes=describe_left_out(measure))


def _open_held_out(source: str | Path) -> Images:
    splits = find_splits(source)
    return open_images(source, next((each for each in HELD_OUT if each in splits), "all"))


def _split_pool(pool: Images, share: float) -> tuple[Images, Images]:
    """Split at random, each class in proportion; without classes where each has a single image."""
    first, second = split_images(pool, share, SEED)
    if len(second):
        return first, second
    order = np.random.default_rng(SEED).permutation(len(pool))
    count = min(max(round(len(pool) * share), 1), len(pool) - 1)
    return pool.subset(np.sort(order[count:])), pool.subset(np.sort(order[:count]))


def _reserve_search(pool: Images, samples: int) -> tuple[Images, Images]:
    """Return the images that are left to calibrate with, and those to search a plan with."""
    if len(pool) < 2:
        raise DataError(f"{pool.name}: one image cannot both calibrate and search; give at least two")
    share = max(1 - samples / len(pool), SEARCH_SHARE, 1 / len(pool))
    pool, searched = split_images(pool, share, SEED + 1)
    if not len(searched):
        raise DataError(f"{pool.name}: a search needs at least two images per class, some to calibrate")
    return pool, sample_images(searched, SEARCH_IMAGES)


def sample_images(images: Images, count: int | None, seed: int = SEED) -> Images:
    """Choose at most `count` images at random, the classes in turn so that each is there; None for all."""
    if count is None or len(images) <= count:
        return images
    order = np.random.default_rng(seed).permutation(len(images))
    if (strata := images.strata) is not None:
        # Rank within the class first: all first images of each class, then all second ones, …
        rank = np.zeros(len(order), np.int64)
        for target in np.unique(strata):
            members = np.flatnonzero(strata[order] == target)
            rank[members] = np.arange(len(members))
        order = order[np.argsort(rank, kind="stable")]
    return images.subset(np.sort(order[:count]))


def _check_disjoint(calibration: Images, evaluation: Images) -> None:
    files = {item.resolve() for item in calibration.items if isinstance(item, Path)}
    shared = [item for item in evaluation.items if isinstance(item, Path) and item.resolve() in files]
    if shared:
        raise DataError(
            f"{shared[0]}: calibrates and measures ({len(shared)} such images); give --evaluate other images"
        )
