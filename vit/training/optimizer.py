"""Parameter groups of the optimizer, schedule of the learning rate, and moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from vit.training.recipe import Recipe

HEAD = 1_000_000  # above any block
Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """Return AdamW with decay on matrices only, and a learning rate that falls from the head down.

    Each group of parameters has its factor of the learning rate as "scale"; `set_learning_rate` uses it.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_layer_of(name), _decays(name, parameter)), []).append(parameter)
    blocks = {_layer_of(name) for name, _ in model.named_parameters() if name.startswith("blocks.")}
    top = 1 + max(blocks, default=0)
    described = [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decay else 0.0,
            "scale": recipe.layer_decay ** (top - min(layer, top)),
        }
        for (layer, decay), parameters in groups.items()
    ]
    fused = all(p.device.type == "cuda" for group in groups.values() for p in group)
    return AdamW(described, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=fused)


def _decays(name: str, parameter: Tensor) -> bool:
    """Return whether it is a matrix or the patch embedding: no bias, norm, factor, token or position."""
    others = ("class_token", "position", "registers", "attention.bias", "pool.query")
    return parameter.ndim >= 2 and not name.endswith(others)


def _layer_of(name: str) -> int:
    """Return 0 for the embeddings, 1 and up for the blocks, HEAD for the last norm and the head."""
    if name.startswith("blocks."):
        return 1 + int(name.split(".")[1])
    embeddings = ("patch_embedding", "class_token", "position", "registers", "pre_norm")
    return 0 if name.startswith(embeddings) else HEAD


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the rate at `step` (from 0) of `steps`: linear over the warm-up, then half a cosine to zero."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    """Set the learning rate of each group of parameters to its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a model's weights, which is more accurate than single steps.

    `update_parameters(model)` after each step blends the weights in. `decay`, the weight of the average in
    each blend, grows with the steps, so that a short run does not keep its initial weights.
    """

    def blend(averaged: Tensors, current: Tensors, steps: Tensor | int) -> None:
        count = int(steps)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    average = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    # The initial weights count as the first ones, so that the next are not just copied.
    average.n_averaged += 1
    return average
