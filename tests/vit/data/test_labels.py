"""Class folders as the classes of a model, also where several classes of it have one name."""

from __future__ import annotations

import numpy as np
import pytest

from vit.data.datasets import DataError, Images
from vit.data.labels import labeled_as, say_same_names

LABELS = ("crane", "cat", "maillot", "crane", "dog", "maillot", "crane")


def folder(*names: str, each: int = 2) -> Images:
    """Some images in folders of these names."""
    targets = np.repeat(np.arange(len(names)), each)
    return Images([np.zeros((8, 8, 3), np.uint8)] * len(targets), targets, names, "photos")


def test_a_folder_means_any_class_of_its_name() -> None:
    images = labeled_as(folder("cat", "crane", "maillot"), LABELS)
    assert images.targets is not None
    assert images.targets.tolist() == [1, 1, 0, 0, 2, 2]
    given = np.array([1, 0, 6, 1, 5, 3])
    assert images.settle(given).tolist() == [1, 0, 0, 1, 2, 3]
    assert (images.settle(given) == images.targets).tolist() == [True, False, True, False, True, False]
    assert images.subset([2, 5]).settle(given[[2, 5]]).tolist() == [0, 3]
    assert labeled_as(images, LABELS) is images  # and it still knows


def test_it_is_said_where_such_a_folder_has_images() -> None:
    said = say_same_names(labeled_as(folder("cat", "crane"), LABELS))
    assert said == (
        "several classes of the model have one name: 'crane' (0, 3, 6); an image in a folder of that name "
        "counts as right with any of them"
    )
    many = tuple(f"{n}" for n in range(9)) * 2
    assert "'0' (0, 9), '1' (1, 10), '2' (2, 11) and 6 more; " in say_same_names(
        labeled_as(folder(*many[:9]), many)
    )
    assert say_same_names(labeled_as(folder("cat", "dog"), LABELS)) == ""
    assert say_same_names(labeled_as(folder("a", "b"), ("b", "a"))) == ""


def test_class_indices_that_are_known_are_not_folded() -> None:
    """Images with the model's own indices say which of two classes of one name they show."""
    exact = Images([np.zeros((8, 8, 3), np.uint8)], np.array([3]), LABELS, "by index")
    assert labeled_as(exact, LABELS).settle(np.array([0])).tolist() == [0]
    assert say_same_names(labeled_as(exact, LABELS)) == ""


def test_a_class_that_the_model_does_not_have() -> None:
    with pytest.raises(DataError, match=r"the class 'bird' \(2 classes\) is not one of the model's 7 labels"):
        labeled_as(folder("bird", "crane"), LABELS)
