"""Finding images and their classes, and saying what is wrong where."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from runtime.images.preprocess import Preprocess
from vit.data.batches import Store
from vit.data.datasets import (
    DataError,
    Images,
    describe_shared_names,
    find_splits,
    match_image_labels,
    open_images,
    split_images,
)
from vit.data.idx import read_idx


def test_folder_of_splits(photos):
    train, test = open_images(photos, "train"), open_images(photos, "test")
    assert (len(train), len(test)) == (36, 12)
    assert train.labels == test.labels == ("blue sky", "grass", "rose")
    assert train.describe(0).endswith("0.png")
    assert train.targets[train.items.index(photos / "train" / "rose" / "3.png")] == 2
    assert len(open_images(photos, "all")) == 48
    assert find_splits(photos) == ("train", "test")
    with pytest.raises(DataError, match="no val split; it has train, test"):
        open_images(photos, "val")


def test_folder_of_classes_is_split_in_proportion(photos):
    folder = photos / "train"
    train, val = open_images(folder, "train"), open_images(folder, "val")
    assert np.bincount(val.targets).tolist() == [2, 2, 2]
    assert not set(train.items) & set(val.items)
    assert set(train.items) | set(val.items) == set(open_images(folder).items)
    assert open_images(folder, "val").items == val.items
    with pytest.raises(DataError, match="no test split"):
        open_images(folder, "test")


def test_loose_images_have_no_classes(photos):
    images = open_images(photos / "train" / "rose")
    assert images.targets is None
    assert len(images) == 12
    with pytest.raises(DataError, match="no train split"):
        open_images(photos / "train" / "rose", "train")


def test_errors_name_the_path(photos, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images here"):
        open_images(tmp_path / "empty")
    (photos / "train" / "vacant").mkdir()
    with pytest.raises(DataError, match="vacant: a class folder without images"):
        open_images(photos, "train")
    (photos / "train" / "vacant").rmdir()
    (photos / "test" / "tree").mkdir()
    with pytest.raises(DataError, match="tree: this class is not among"):
        open_images(photos, "test")
    lonely = tmp_path / "lonely" / "only"
    lonely.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(lonely / "a.png")
    with pytest.raises(DataError, match=r"two or more classes, found only 'only'"):
        open_images(tmp_path / "lonely", "train")
    with pytest.raises(DataError, match="split must be"):
        open_images(photos, "training")


def test_split_is_stratified_seeded_and_keeps_every_class():
    targets = np.repeat([0, 1, 2], [100, 10, 1])
    images = Images([np.full((1, 1, 3), i, np.uint8) for i in range(111)], targets, ("a", "b", "c"), "x")
    first, second = split_images(images, 0.2, seed=1)
    assert np.bincount(second.targets, minlength=3).tolist() == [20, 2, 0]
    assert np.bincount(first.targets).tolist() == [80, 8, 1]
    again = split_images(images, 0.2, seed=1)[1]
    assert [int(a[0, 0, 0]) for a in again.items] == [int(a[0, 0, 0]) for a in second.items]
    other = split_images(images, 0.2, seed=2)[1]
    assert [int(a[0, 0, 0]) for a in other.items] != [int(a[0, 0, 0]) for a in second.items]
    with pytest.raises(DataError, match="between 0 and 1"):
        split_images(images, 1.5, seed=0)


def test_digits_are_the_known_ones():
    train, test = open_images("digits", "train"), open_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount(test.targets).min() >= 34
    assert test[0].shape == (8, 8, 3)
    assert test[0].dtype == np.uint8
    assert max(item.max() for item in test.items) == 255
    mine = {item.tobytes() for item in test.items}
    assert sum(item.tobytes() in mine for item in train.items) <= 2  # scikit-learn has hardly a duplicate


def write_idx(path, array):
    data = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx_folder(tmp_path):
    folder = tmp_path / "fashion-small"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 6), dtype=np.uint8)
    for prefix, end in (("train", ".gz"), ("t10k", "")):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", np.arange(20, dtype=np.uint8) % 10)
    train = open_images(folder, "train")
    assert train.labels[9] == "Ankle boot"
    assert np.array_equal(train[3], np.stack([images[3]] * 3, -1))
    assert len(open_images(folder, "all")) == 40
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="expected 600 bytes of data, found 593"):
        open_images(folder, "test")
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="expected an IDX file"):
        read_idx(path)


def test_fashion_mnist_is_found_by_itself():
    from vit.data.datasets import FASHION_FOLDER

    if not FASHION_FOLDER.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    test = open_images("fashion-mnist", "test")
    assert np.bincount(test.targets).tolist() == [1000] * 10
    assert test.labels[0] == "T-shirt/top"


def test_store_skips_bad_images_up_to_a_share(photos):
    broken = photos / "train" / "grass" / "5.png"
    broken.write_text("not an image")
    images = open_images(photos, "train")
    with pytest.raises(DataError, match=r"5\.png.*1 of 36 images"):
        Store(images, Preprocess(size=(8, 8)), bad_share=0.01)
    store = Store(images, Preprocess(size=(8, 8)), bad_share=0.05)
    index = images.items.index(broken)
    pixels, good = store.batch([index, 0])
    assert good.tolist() == [False, True]
    assert pixels[0].max() == 0
    assert list(store.bad) == [index]


def test_store_gives_the_same_from_memory_and_from_disk(photos):
    images = open_images(photos, "train")
    kept, streamed = (Store(images, Preprocess(size=(8, 8)), memory=memory) for memory in (1 << 30, 0))
    assert kept.cache is not None
    assert streamed.cache is None
    groups = [np.array([3, 1]), np.array([35]), np.array([0, 7, 8])]
    for one, other in zip(kept.batches(iter(groups)), streamed.batches(iter(groups)), strict=True):
        assert np.array_equal(one[0], other[0])
        assert (one[1] == other[1]).all()
        assert (one[1][0].numpy() == Preprocess(size=(8, 8))(images[int(one[0][0])])).all()


LABELS = ("crane", "cat", "maillot", "crane", "dog", "maillot", "crane")


def images_in(*names: str, each: int = 2) -> Images:
    """Some images in folders of these names."""
    targets = np.repeat(np.arange(len(names)), each)
    return Images([np.zeros((8, 8, 3), np.uint8)] * len(targets), targets, names, "photos")


def test_a_folder_means_any_class_of_its_name() -> None:
    images = match_image_labels(images_in("cat", "crane", "maillot"), LABELS)
    assert images.targets is not None
    assert images.targets.tolist() == [1, 1, 0, 0, 2, 2]
    given = np.array([1, 0, 6, 1, 5, 3])
    assert images.settle(given).tolist() == [1, 0, 0, 1, 2, 3]
    assert (images.settle(given) == images.targets).tolist() == [True, False, True, False, True, False]
    assert images.subset([2, 5]).settle(given[[2, 5]]).tolist() == [0, 3]
    assert match_image_labels(images, LABELS) is images  # and it still knows


def test_it_is_said_where_such_a_folder_has_images() -> None:
    said = describe_shared_names(match_image_labels(images_in("cat", "crane"), LABELS))
    assert said == (
        "several classes of the model have one name: 'crane' (0, 3, 6); an image in a folder of that name "
        "counts as right with any of them"
    )
    many = tuple(f"{n}" for n in range(9)) * 2
    assert "'0' (0, 9), '1' (1, 10), '2' (2, 11) and 6 more; " in describe_shared_names(
        match_image_labels(images_in(*many[:9]), many)
    )
    assert describe_shared_names(match_image_labels(images_in("cat", "dog"), LABELS)) == ""
    assert describe_shared_names(match_image_labels(images_in("a", "b"), ("b", "a"))) == ""


def test_class_indices_that_are_known_are_not_folded() -> None:
    """Images with the model's own indices say which of two classes of one name they show."""
    exact = Images([np.zeros((8, 8, 3), np.uint8)], np.array([3]), LABELS, "by index")
    assert match_image_labels(exact, LABELS).settle(np.array([0])).tolist() == [0]
    assert describe_shared_names(match_image_labels(exact, LABELS)) == ""


def test_a_class_that_the_model_does_not_have() -> None:
    with pytest.raises(DataError, match=r"the class 'bird' \(2 classes\) is not one of the model's 7 labels"):
        match_image_labels(images_in("bird", "crane"), LABELS)
