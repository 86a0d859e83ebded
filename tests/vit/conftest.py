"""Small models, images and runs that the tests of this room share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.images.preprocess import Preprocess
from vit.config import ViTConfig
from vit.model import ViT

TINY = ViTConfig(image_size=(8, 8), patch_size=4, width=16, depth=2, heads=2, mlp_width=32, classes=3)


@pytest.fixture
def tiny_config() -> ViTConfig:
    return TINY


@pytest.fixture
def tiny_model() -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(TINY)
        randomize(model)
    return model.eval()


@pytest.fixture
def tiny_preprocess() -> Preprocess:
    return Preprocess(size=(8, 8), resize="stretch")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`photos/train|test/<class>/*.png`: three classes that differ by color, and noise on top."""
    folder = tmp_path / "photos"
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for channel, name in enumerate(("blue sky", "grass", "rose")):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 80, (10, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def randomize(model: torch.nn.Module) -> None:
    """Weights without a zero or a one among them, so that no mistake in a mapping goes unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
