"""Small models with random weights that are the same on every machine, for tests."""

from __future__ import annotations

import numpy as np
import torch

from vit.config import ViTConfig
from vit.model import ViT


def configs() -> dict[str, ViTConfig]:
    """Small shapes that differ in all that the rewrites look at."""
    return {
        "plain": ViTConfig(
            image_size=(32, 32), patch_size=8, width=32, depth=2, heads=4, mlp_width=64, classes=10
        ),
        # Nothing square, nothing even, means and deviations that differ by channel.
        "odd": ViTConfig(
            image_size=(21, 35),
            patch_size=7,
            width=33,
            depth=2,
            heads=3,
            mlp_width=51,
            classes=7,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        # Everything that only some models have.
        "rich": ViTConfig(
            image_size=(16, 24),
            patch_size=8,
            width=16,
            depth=2,
            heads=2,
            mlp_width=24,
            classes=5,
            representation=12,
            layer_scale=True,
            norm_epsilon=1e-12,
            activation="gelu_tanh",
        ),
    }


def lively(config: ViTConfig) -> ViT:
    """A model in which every parameter matters: none is zero or one, as first weights are."""
    random = np.random.default_rng(7)
    model = ViT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(random.normal(size=parameter.shape).astype(np.float32))
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model
