"""A trained model for other classes and another resolution (section 3.2 of arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vit.model import ViT


def adapt(model: ViT, *, classes: int, image_size: tuple[int, int] | None = None) -> ViT:
    """A copy of `model` with a new head for `classes`, and positions interpolated to `image_size`.

    The tanh layer that some pre-trained heads have goes with the old head, as in the paper. The new head is
    zero, as there: what it does not know yet does not disturb the features in the first steps.
    """
    size = image_size or model.config.image_size
    config = replace(model.config, classes=classes, image_size=size, representation=None)
    adapted = ViT(config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    weights["position"] = resized_position(model.position.detach(), model.config.grid, config.grid)
    head = {f"head.{name}": torch.zeros_like(value) for name, value in adapted.head.state_dict().items()}
    adapted.load_state_dict(weights | head)
    return adapted.train(model.training)


def resize(model: ViT, image_size: tuple[int, int]) -> ViT:
    """A copy of `model`, head and all, with positions interpolated to `image_size`."""
    resized = ViT(replace(model.config, image_size=image_size))
    position = resized_position(model.position.detach(), model.config.grid, resized.config.grid)
    resized.load_state_dict(model.state_dict() | {"position": position})
    return resized.train(model.training)


def resized_position(position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position embeddings `[1, 1 + rows·columns, D]` from the grid `old` to the grid `new`.

    Bicubic in two dimensions; the class token's stays as it is.
    """
    if old == new:
        return position
    class_token, patches = position[:, :1], position[:, 1:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True)
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)
