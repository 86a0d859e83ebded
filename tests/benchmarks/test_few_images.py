"""Classes by example against a probe: the same draws for both, and images of CIFAR-10 from strips."""

import json

import numpy as np
import torch
from PIL import Image

from benchmarks.few_images import CIFAR, compare, write_cifar
from vit.data.datasets import open_images


def test_strips_become_a_folder_of_classes(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (60, 1024, 3), np.uint8)
    targets = [index % 10 for index in range(60)]
    for strip, labels in (("data_batch_1", "train_lables"), ("test_batch", "test_lables")):
        Image.fromarray(pixels).save(tmp_path / f"{strip}.png")
        (tmp_path / f"{labels}.json").write_text(json.dumps(targets))
    write_cifar(tmp_path, tmp_path / "photos", train=3, test=2)
    train, test = (open_images(tmp_path / "photos", split) for split in ("train", "test"))
    assert train.labels == test.labels == CIFAR
    assert (len(train), len(test)) == (30, 20)
    place = int(train.items[4].stem)
    assert targets[place] == train.targets[4] == 1
    np.testing.assert_array_equal(np.asarray(Image.open(train.items[4])), pixels[place].reshape(32, 32, 3))


def test_both_are_right_where_classes_lie_apart_and_guess_where_they_do_not():
    random = torch.Generator().manual_seed(0)
    targets = np.arange(4).repeat(20)
    noise = torch.randn(80, 16, generator=random)
    apart = 0.1 * noise + 20 * torch.eye(16)[targets]
    for features, low, high in ((apart, 75, 100), (noise, 5, 60)):
        means, probe, *losses = compare((features, targets), (features, targets), 3, 3)
        for cell in (means, probe):
            assert low <= float(cell.split(" ± ")[0]) <= high
        assert all(float(cell.split(" ± ")[0]) >= 0 for cell in losses)
