"""Last LayerNorm of the model, and the head that gives the logits."""

from __future__ import annotations

from torch import nn

from vit.config import ViTConfig


def make_norm(config: ViTConfig) -> nn.Module:
    """The last LayerNorm; after pooling it is as wide as what pooling gives."""
    if config.final_norm == "none":
        return nn.Identity()
    width = config.features if config.final_norm == "after" else config.width
    return nn.LayerNorm(width, eps=config.norm_epsilon)


def make_head(config: ViTConfig) -> nn.Module:
    """One linear layer, behind a tanh layer where a pre-trained head has one (section 3.1)."""
    if not config.classes:
        return nn.Identity()
    if config.representation is None:
        return nn.Linear(config.features, config.classes)
    return nn.Sequential(
        nn.Linear(config.features, config.representation),
        nn.Tanh(),
        nn.Linear(config.representation, config.classes),
    )
