"""A head of class vectors: the scale of its scores, and the classes that are added to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit.adapt import adapt_model
from vit.class_head import (
    SCALES,
    HeadError,
    add_class,
    attach_head,
    average_examples,
    combine,
    fit_scale,
    read_head,
)
from vit.data.datasets import DataError
from vit.model import ViT

NAMES = ("a", "b", "c", "d")


def clusters(classes=4, each=6, width=12, noise=0.25):
    """Embeddings of length 1 around one direction per class, and their class indices."""
    random = torch.Generator().manual_seed(5)
    centers = F.normalize(torch.randn(classes, width, generator=random), dim=-1)
    targets = np.arange(classes).repeat(each)
    noisy = centers[targets] + noise * torch.randn(len(targets), width, generator=random)
    return F.normalize(noisy, dim=-1), targets


def test_the_scale_is_the_best_of_examples_that_are_left_out():
    """Recomputed in the plainest way: without each example, the means of the others."""
    embeddings, targets = clusters()
    losses = []
    for scale in SCALES:
        loss = 0.0
        for index, target in enumerate(targets):
            rest = np.arange(len(targets)) != index
            means = F.normalize(average_examples(embeddings[rest], targets[rest], NAMES), dim=-1)
            loss += float(F.cross_entropy(scale * means @ embeddings[index], torch.tensor(target)))
        losses.append(loss)
    best = float(SCALES[int(np.argmin(losses))])
    assert 1 < best < 100
    assert fit_scale(embeddings, targets) == pytest.approx(best)


def test_examples_that_are_less_alike_get_a_smaller_scale():
    scales = [fit_scale(*clusters(noise=noise)) for noise in (0.1, 0.4)]
    assert scales[0] > 1.5 * scales[1]


def test_a_class_of_one_example_is_left_out_of_the_fit():
    embeddings, targets = clusters()
    single = np.flatnonzero(targets == 2)[1:]
    keep = np.setdiff1d(np.arange(len(targets)), single)
    assert fit_scale(embeddings[keep], targets[keep]) is not None
    assert fit_scale(embeddings[::6], targets[::6]) is None
    with pytest.raises(DataError, match="found none of fox"):
        average_examples(embeddings, targets, [*NAMES, "fox"])


def test_a_class_that_is_added_leaves_the_others_as_they_were(tiny_model):
    random = torch.Generator().manual_seed(1)
    means, center = torch.randn(3, 16, generator=random), torch.randn(16, generator=random)
    vectors = F.normalize(means - center, dim=-1)
    model = attach_head(tiny_model, vectors[:2], scale=30.0, center=center)
    more = add_class(model, means[2], center)
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=random)
    with torch.no_grad():
        torch.testing.assert_close(more(pixels)[:, :2], model(pixels), atol=1e-4, rtol=0)
        embeddings = F.normalize(tiny_model.features(pixels), dim=-1)
        torch.testing.assert_close(more(pixels), 30 * (embeddings - center) @ vectors.T, atol=1e-4, rtol=0)
    for other in (tiny_model, ViT(replace(tiny_model.config, cosine_head=True))):
        with pytest.raises(HeadError, match="found one that was trained"):
            add_class(other, means[2], center)
    with pytest.raises(HeadError, match="expected a center of 16 numbers, found 0"):
        add_class(model, means[2], torch.tensor([]))
    assert read_head(more)[1] == pytest.approx(30.0)


def test_what_all_images_share_changes_nothing():
    """The same embeddings with one direction added have the same classes: it is subtracted."""
    embeddings, targets = clusters()
    means = average_examples(embeddings, targets, NAMES)
    moved = average_examples(embeddings + 3.0, targets, NAMES)
    torch.testing.assert_close(
        combine(moved - moved.mean(0), None), combine(means - means.mean(0), None), atol=1e-5, rtol=0
    )


def test_a_projection_stays_with_a_new_head(tiny_model):
    projection = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    model = attach_head(tiny_model, F.normalize(torch.eye(6)[:2]), scale=1.0, projection=projection)
    other = attach_head(model, F.normalize(torch.eye(6)[:3]), scale=1.0)
    pixels = torch.full((1, 8, 8, 3), 90, dtype=torch.uint8)
    with torch.no_grad():
        expected = F.normalize(tiny_model.features(pixels) @ projection.T, dim=-1)
        torch.testing.assert_close(other.features(pixels), expected, atol=1e-6, rtol=0)
    assert other.config.features == 6


def test_another_training_starts_without_the_projection(tiny_model):
    projection = torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    model = attach_head(tiny_model, torch.eye(6)[:2], scale=1.0, projection=projection)
    adapted = adapt_model(model, classes=4)
    pixels = torch.full((1, 8, 8, 3), 90, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(adapted.features(pixels), tiny_model.features(pixels))
    assert adapted.config == replace(tiny_model.config, classes=4)
