"""Other classes, other resolutions."""

import pytest
import torch
from torch.nn import functional as F

from vit.adapt import adapt_model, interpolate_position, resize_model


def test_same_grid_is_untouched(tiny_model):
    assert interpolate_position(tiny_model.position, (2, 2), (2, 2)) is tiny_model.position


def test_positions_are_interpolated_in_two_dimensions():
    """A field that is linear down and across stays linear (inside), and the class token stays."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    position = torch.cat([torch.full((1, 1, 2), 9.0), torch.stack([rows, columns], -1).view(1, 48, 2)], 1)
    larger = interpolate_position(position, (6, 8), (12, 16))
    assert larger.shape == (1, 1 + 12 * 16, 2)
    assert torch.equal(larger[:, 0], position[:, 0])
    grid = larger[0, 1:].view(12, 16, 2)[4:-4, 4:-4]
    expected_rows = (torch.arange(12) + 0.5) / 2 - 0.5
    torch.testing.assert_close(grid[:, 0, 0], expected_rows[4:-4], atol=0.02, rtol=0)
    smaller = interpolate_position(position, (6, 8), (3, 4))
    grid = position[:, 1:].view(1, 6, 8, 2).permute(0, 3, 1, 2)
    reference = F.interpolate(grid, (3, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(smaller[0, 1:].T.reshape(1, 2, 3, 4), reference)


def test_adapted_model_has_the_features_and_a_zero_head(tiny_model):
    adapted = adapt_model(tiny_model, classes=5)
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(adapted.features(pixels), tiny_model.features(pixels))
        assert torch.equal(adapted(pixels), torch.zeros(2, 5))
    assert not adapted.training
    adapted.head.weight.data.fill_(1.0)
    assert not torch.equal(adapted.head.weight.data[:3], tiny_model.head.weight.data)  # nothing is shared


@pytest.mark.parametrize("size", [(12, 8), (16, 16)])
def test_resized_model_answers_at_the_new_size(tiny_model, size):
    resized = resize_model(tiny_model, size)
    assert resized.config.image_size == size
    with torch.no_grad():
        logits = resized(torch.full((1, *size, 3), 100.0))
        # Patches of one color differ by position alone, so the answer stays near the old one.
        old = tiny_model(torch.full((1, 8, 8, 3), 100.0))
    assert (logits - old).abs().max() < 0.5 * old.abs().max()
