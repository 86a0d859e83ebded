"""The classes of images as those of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.text import counted
from vit.data.images import DataError, Images


def labeled_as(images: Images, labels: tuple[str, ...]) -> Images:
    """The same images with the model's own class indices; without classes when images or model have none.

    Raises:
        DataError: when the folders' classes are not the model's.
    """
    if images.targets is None or images.labels is None or not labels:
        return replace(images, targets=None, labels=None)
    if images.labels == labels:
        return images
    if unknown := [label for label in images.labels if label not in labels]:
        raise DataError(
            f"{images.name}: the class {unknown[0]!r} ({counted(len(images.labels), 'class', 'classes')}) is "
            f"not one of the model's {len(labels)} labels; give folders named as the model's classes, or "
            "loose images"
        )
    index = np.array([labels.index(label) for label in images.labels], np.int64)
    return replace(images, targets=index[images.targets], labels=labels)
