"""Adapt a trained model to other classes and another resolution (section 3.2 of arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vit.config import PLAIN_HEAD, ViTConfig, check_grid
from vit.model import ViT


def adapt_model(model: ViT, *, classes: int, image_size: tuple[int, int] | None = None) -> ViT:
    """Return a copy of `model` with a new head, and positions interpolated to another size.

    The tanh layer that some pre-trained heads have is dropped, as in the paper, and so are the projection
    and the cosines of a head of class vectors. The new head is zero, as there, so that it does not disturb
    the features in the first steps.

    Args:
        model: a trained model.
        classes: number of classes of the new head.
        image_size: (height, width) in pixels; None keeps the size.

    Raises:
        ConfigError: when the positions are in the attention, and cannot be interpolated.
    """
    size = image_size or model.config.image_size
    config = replace(model.config, classes=classes, image_size=size, **PLAIN_HEAD)
    adapted = ViT(config)
    old = ("head.", "projection.")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(old)}
    weights["position"] = _interpolate_to(model, config)
    head = {f"head.{name}": torch.zeros_like(value) for name, value in adapted.head.state_dict().items()}
    adapted.load_state_dict(weights | head)
    return adapted.train(model.training)


def resize_model(model: ViT, image_size: tuple[int, int]) -> ViT:
    """Return a copy of `model` with its head, and positions interpolated to (height, width) in pixels.

    Raises:
        ConfigError: when the positions are in the attention, and cannot be interpolated.
    """
    resized = ViT(replace(model.config, image_size=image_size))
    resized.load_state_dict(model.state_dict() | {"position": _interpolate_to(model, resized.config)})
    return resized.train(model.training)


def _interpolate_to(model: ViT, config: ViTConfig) -> Tensor:
    check_grid(model.config, config)
    return interpolate_position(model.position.detach(), model.config.grid, config.grid)


def interpolate_position(
    position: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = True
) -> Tensor:
    """Interpolate position embeddings from one grid of patches to another.

    Bicubic in two dimensions (the paper's code is linear). The embedding of a class token in front stays.

    Args:
        position: float `[1, rows · columns, D]`, with one more for a class token.
        old: (rows, columns) of the grid of `position`.
        new: (rows, columns) of the grid to return.
        antialias: average where the grid shrinks, as timm does; transformers does not.
    """
    if old == new:
        return position
    extra = position.shape[1] - old[0] * old[1]
    class_token, patches = position[:, :extra], position[:, extra:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, new, mode="bicubic", antialias=antialias)
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2)], dim=1)
