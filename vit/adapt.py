"""A trained model for other classes and another resolution (section 3.2 of arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vit.config import ViTConfig, check_grid
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
    weights |= moved_positions(model, config)
    head = {f"head.{name}": torch.zeros_like(value) for name, value in adapted.head.state_dict().items()}
    adapted.load_state_dict(weights | head)
    return adapted.train(model.training)


def resize(model: ViT, image_size: tuple[int, int]) -> ViT:
    """A copy of `model`, head and all, with positions interpolated to `image_size`."""
    resized = ViT(replace(model.config, image_size=image_size))
    resized.load_state_dict(model.state_dict() | moved_positions(model, resized.config))
    return resized.train(model.training)


def moved_positions(model: ViT, config: ViTConfig) -> dict[str, Tensor]:
    """The position embeddings of `model` for the grid of `config`.

    Raises:
        ConfigError: when the positions are in the attention, and cannot be moved.
    """
    check_grid(model.config, config)
    old, new = model.config.grid, config.grid
    return {"position": resized_position(model.position.detach(), old, new)}


def resized_position(
    position: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = True
) -> Tensor:
    """Interpolate position embeddings from one grid of patches to another.

    Bicubic in two dimensions (the paper's code is linear); the class token's, where there is one in front,
    stays as it is.

    Args:
        position: `float [1, rows · columns, D]`, with one more for a class token.
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
