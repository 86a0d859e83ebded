"""Augmentation changes what it should, and nothing else."""

import numpy as np
import pytest
import torch

from vit.training import augment
from vit.training.augment import (
    Augment,
    crop_and_resize,
    erase,
    mix_neighbors,
    mixing_share,
    random_boxes,
    shift,
    warp,
)
from vit.training.recipe import Recipe


@pytest.fixture
def pixels():
    return torch.rand(6, 10, 12, 3, generator=torch.Generator().manual_seed(0)) * 255


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_is_nothing_done(pixels):
    assert torch.equal(Augment(Recipe(), (10, 12))(pixels, seeded(), 6, 0), pixels)


def test_shift_is_a_crop_of_the_padded_image(pixels):
    offsets = torch.tensor([[2, 2], [0, 2], [4, 3], [2, 0], [1, 1], [2, 4]])
    moved = shift(pixels, offsets, 2)
    assert torch.equal(moved[0], pixels[0])
    assert torch.equal(moved[1, 2:], pixels[1, :-2])  # down by two
    assert moved[1, :2].abs().sum() == 0
    assert torch.equal(moved[2, :-2, :-1], pixels[2, 2:, 1:])


def test_flip_turns_about_half_the_images(pixels):
    many = pixels[:1].expand(400, -1, -1, -1)
    flipped = Augment(Recipe(flip=True), (10, 12))(many, seeded(), 400, 0)
    same = (flipped == pixels[0]).flatten(1).all(1)
    assert 150 < int(same.sum()) < 250
    assert (flipped[~same] == pixels[0].flip(1)).all()


def test_crop_cuts_boxes_inside_the_image():
    boxes = random_boxes(1000, 0.3, seeded())
    x, y, width, height = boxes.unbind(1)
    assert (x.abs() + width <= 1 + 1e-6).all()
    assert (y.abs() + height <= 1 + 1e-6).all()
    area = width * height
    assert area.min() >= 0.29
    assert area.max() > 0.95
    assert 0.55 < area.mean() < 0.7


def test_the_whole_box_is_the_whole_image(pixels):
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(6, -1)
    torch.testing.assert_close(crop_and_resize(pixels, whole, (10, 12)), pixels, atol=1e-3, rtol=0)
    left = torch.tensor([[-0.5, 0.0, 0.5, 1.0]]).expand(6, -1)
    torch.testing.assert_close(crop_and_resize(pixels, left, (10, 6)), pixels[:, :, :6], atol=1e-3, rtol=0)


def test_erasing_fills_a_rectangle_with_the_mean(pixels):
    numbers = torch.tensor([[0.1, 0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5, 0.5]])
    changed = erase(pixels[:2], 0.5, numbers)
    assert torch.equal(changed[1], pixels[1])
    hole = (changed[0] != pixels[0]).any(-1)
    rows, columns = hole.any(1), hole.any(0)
    assert torch.equal(hole, rows[:, None] & columns)
    torch.testing.assert_close(changed[0][hole], pixels[0].mean((0, 1)).expand(int(hole.sum()), 3))
    assert 0.02 < hole.float().mean() < 0.35


@pytest.mark.parametrize("operation", augment.OPERATIONS, ids=lambda f: f.__name__)
def test_operations_keep_range_and_shape(pixels, operation):
    for strength in (-1.0, -0.3, 0.4, 1.0):
        changed = operation(pixels, torch.full((6,), strength))
        assert changed.shape == pixels.shape
        assert changed.min() >= 0
        assert changed.max() <= 255.01
    if operation not in (augment.identity, augment.autocontrast):
        assert not torch.allclose(operation(pixels, torch.full((6,), 0.8)), pixels)
    if operation not in (augment.autocontrast, augment.posterize):
        unchanged = operation(pixels, torch.zeros(6))
        torch.testing.assert_close(unchanged, pixels, atol=2e-3, rtol=0)


def test_rotation_by_a_half_turn_of_the_matrix(pixels):
    half_turn = torch.tensor([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).expand(6, -1, -1)
    torch.testing.assert_close(warp(pixels, half_turn), pixels.flip(1, 2), atol=1e-3, rtol=0)


def test_mixup_mixes_neighbors(pixels):
    targets = torch.eye(6)
    mixture, probabilities = mix_neighbors(pixels[:5], targets[:5], 0.75, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(mixture[2], 0.75 * pixels[2] + 0.25 * pixels[3])
    torch.testing.assert_close(mixture[3], 0.75 * pixels[3] + 0.25 * pixels[2])
    torch.testing.assert_close(mixture[4], pixels[4])  # alone at the end
    assert probabilities[2].tolist() == [0, 0, 0.75, 0.25, 0, 0]
    good = torch.tensor([True, False, True, True, True])
    mixture, probabilities = mix_neighbors(pixels[:5], targets[:5], 0.75, good)
    torch.testing.assert_close(mixture[0], pixels[0])  # its neighbor cannot be read, and is black
    assert probabilities[0].tolist() == targets[0].tolist()
    torch.testing.assert_close(mixture[2], 0.75 * pixels[2] + 0.25 * pixels[3])


def test_parts_of_a_batch_are_the_batch_cut_apart(pixels):
    recipe = Recipe(shift=1, flip=True, crop=0.4, randaugment=3, erasing=0.5)
    change = Augment(recipe, (8, 8))
    whole = change(pixels, seeded(), 6, 0)
    parts = [change(pixels[start : start + 3], seeded(), 6, start) for start in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_an_image_is_the_larger_part_of_its_mixture(pixels):
    """The class with the largest share of a mixture counts as correct."""
    shares = [mixing_share(0.2, seed) for seed in range(200)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1
    assert np.std(shares) > 0.05
    targets = torch.eye(4)  # nothing is lost: the smaller share gives the same two mixtures, swapped
    good = torch.ones(4, dtype=torch.bool)
    pairs = (mix_neighbors(pixels[:4], targets, share, good) for share in (0.8, 0.2))
    for more, less in zip(*pairs, strict=True):
        torch.testing.assert_close(more, less[[1, 0, 3, 2]])
