"""Attention of a model: maps, and their rollout over the blocks (arXiv 2005.00928)."""

from __future__ import annotations

import torch
from torch import Tensor

from vit.model import Attention, ViT


@torch.no_grad()
def attention_maps(model: ViT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`[blocks, N, heads, T, T]` attention probabilities, and the logits `[N, classes]`."""
    maps: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        query, key = (module.split_heads(project(inputs[0])) for project in (module.query, module.key))
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (N, h, T, T)
        maps.append(scores.softmax(-1))

    hooks = [block.attention.register_forward_pre_hook(record) for block in model.blocks]  # type: ignore[union-attr]
    try:
        logits = model.eval()(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps), logits


def rollout(maps: Tensor) -> Tensor:
    """Return the share of each patch in the class token, `[N, T - 1]`, each row summing to 1 (figure 6).

    The heads are averaged, half of each block is its residual, and the blocks are multiplied.
    """
    mean = maps.mean(2)  # (blocks, N, T, T)
    half = 0.5 * (mean + torch.eye(mean.shape[-1]))
    flow = half[0]
    for step in half[1:]:
        flow = step @ flow
    patches = flow[:, 0, 1:]
    return patches / patches.sum(-1, keepdim=True)
