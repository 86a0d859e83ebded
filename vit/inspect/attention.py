"""Attention of a model: maps, and their rollout over the blocks (arXiv 2005.00928)."""

from __future__ import annotations

import torch
from torch import Tensor

from vit.config import ViTConfig
from vit.model import Attention, ViT


@torch.no_grad()
def attention_maps(model: ViT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`[blocks, N, heads, T, T]` attention probabilities, and the logits `[N, classes]`."""
    maps: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        query, key = module.queries_and_keys(inputs[0])
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (N, h, T, T)
        if module.bias is not None:
            scores = scores + module.bias
        maps.append(scores.softmax(-1))

    hooks = [block.attention.register_forward_pre_hook(record) for block in model.blocks]  # type: ignore[union-attr]
    try:
        logits = model.eval()(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps), logits


def rollout(maps: Tensor, config: ViTConfig | None = None) -> Tensor:
    """Return the share of each patch in the class token, `[N, T - 1]`, each row summing to 1 (figure 6).

    Without a class token it is the mean of the patches that they flow into. Registers are no patches.
    The heads are averaged, half of each block is its residual, and the blocks are multiplied.
    """
    mean = maps.mean(2)  # (blocks, N, T, T)
    half = 0.5 * (mean + torch.eye(mean.shape[-1]))
    flow = half[0]
    for step in half[1:]:
        flow = step @ flow
    config = config or ViTConfig()
    start, end = int(config.class_token), maps.shape[-1] - config.registers
    seen = flow[:, 0] if config.class_token else flow.mean(1)  # (N, T)
    patches = seen[:, start:end]
    return patches / patches.sum(-1, keepdim=True)
