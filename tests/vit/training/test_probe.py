"""Features that are kept between runs of a probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vit.data.batches import Store
from vit.data.datasets import Images, open_images
from vit.model import ViT
from vit.training.probe import Features

CPU = torch.device("cpu")


@pytest.mark.parametrize("change", [{"heads": 4}, {"activation": "quick_gelu"}, {"norm_epsilon": 0.1}])
def test_another_model_with_the_same_weights_gets_its_own_features(
    tiny_model, tiny_preprocess, tmp_path, change
):
    """Heads, activation and epsilon are in no weight: an import may be repeated with others."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    store = Store(Images(list(pixels), None, None, "memory"), tiny_preprocess)
    other = ViT(replace(tiny_model.config, **change))
    other.load_state_dict(tiny_model.state_dict())
    first = Features(tiny_model, store, CPU, tmp_path).features
    second = Features(other, store, CPU, tmp_path).features
    assert not torch.allclose(first, second)
    with torch.no_grad():
        torch.testing.assert_close(second, other.features(torch.from_numpy(pixels)))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_head_on_the_same_backbone_needs_no_new_features(tiny_model, tiny_preprocess, tmp_path):
    store = Store(Images([np.zeros((8, 8, 3), np.uint8)], None, None, "memory"), tiny_preprocess)
    other = ViT(replace(tiny_model.config, classes=7))
    other.load_state_dict(
        tiny_model.state_dict() | {f"head.{k}": v for k, v in other.head.state_dict().items()}
    )
    Features(tiny_model, store, CPU, tmp_path)
    Features(other, store, CPU, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_image_that_is_not_there_is_no_obstacle(tiny_model, tiny_preprocess, photos, tmp_path):
    """A link to nothing is counted as unreadable, as in every other training."""
    (photos / "test" / "grass" / "gone.png").symlink_to(photos / "nowhere.png")
    store = Store(open_images(photos, "test"), tiny_preprocess, bad_share=0.1)
    found = Features(tiny_model, store, CPU, tmp_path)
    assert found.good.sum() == len(found) - 1 == 12
