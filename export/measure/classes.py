"""Accuracy of each class, by variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.graph.edit import Array


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of the evaluation images."""

    index: int
    label: str
    images: int
    right: Mapping[str, int]  # images with the right label, by variant

    def top1(self, variant: str) -> float:
        """Return the share of images with the right label, 0 to 1."""
        return self.right[variant] / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "index": self.index,
            "label": self.label,
            "images": self.images,
            "top1": {name: round(100 * self.top1(name), 2) for name in self.right},
        }


def by_class(given: Mapping[str, Array], targets: Array, labels: Sequence[str]) -> list[ClassResult]:
    """Count what each variant gets right, for every class that has an image.

    Args:
        given: classes given to the images, int64 [images] by variant, as `Images.settle` returns them.
        targets: int64 [images].
        labels: by class index.

    Returns:
        The classes in the order of their indices.
    """
    right = {name: classes == targets for name, classes in given.items()}
    return [
        ClassResult(
            index=int(index),
            label=labels[int(index)],
            images=int((targets == index).sum()),
            right={name: int(hits[targets == index].sum()) for name, hits in right.items()},
        )
        for index in np.unique(targets)
    ]
