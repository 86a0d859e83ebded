"""The classes of images as those of a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from runtime.text import format_count
from vit.data.datasets import DataError, Images

SHOWN = 3  # names that one sentence holds


def labeled_as(images: Images, labels: tuple[str, ...]) -> Images:
    """The same images with the model's own class indices; without classes when images or model have none.

    Where several classes of the model have one name, a folder of that name means any of them.

    Raises:
        DataError: when the folders' classes are not the model's.
    """
    if images.targets is None or images.labels is None or not labels:
        return replace(images, targets=None, labels=None)
    if images.labels == labels:
        return images
    known = set(labels)
    if unknown := [label for label in images.labels if label not in known]:
        count = format_count(len(images.labels), "class", "classes")
        raise DataError(
            f"{images.name}: the class {unknown[0]!r} ({count}) is not one of the model's {len(labels)} "
            "labels; give folders named as the model's classes, or loose images"
        )
    place: dict[str, int] = {}
    for each, label in enumerate(labels):
        place.setdefault(label, each)
    index = np.array([place[label] for label in images.labels], np.int64)
    first = np.array([place[label] for label in labels], np.int64)
    same_name = first if len(place) < len(labels) else None
    return replace(images, targets=index[images.targets], labels=labels, same_name=same_name)


def say_same_names(images: Images) -> str:
    """Return a sentence about classes of one name that have images here, or nothing.

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
        for label in twice[:SHOWN]
    ]
    more = f" and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
    return (
        f"several classes of the model have one name: {', '.join(named)}{more}; an image in a folder of that "
        "name counts as right with any of them"
    )
