"""Token merging (ToMe, arXiv 2210.09461) for training: the model of `vit/model.py` on fewer tokens.

The same weights, names and sizes: only `blocks` is another kind of sequence. `calibration/token_merging` writes the
same arithmetic into the graph; a test holds the two to 1e-4 of each other.
"""

# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.config import ConfigError
from vit.model import Attention, Block, ViT
from vit.schedule import KEPT


class MergingBlocks(nn.Sequential):
    """A model's blocks, of which some merge similar patches between attention and MLP.

    Args:
        blocks: the blocks of a `ViT`.
        schedule: how many patches a block merges, by its index.
    """

    def __init__(self, blocks: nn.Sequential, schedule: Mapping[int, int]) -> None:
        super().__init__(*blocks)
        self.schedule = dict(schedule)

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.new_ones(*tokens.shape[:2], 1)  # (N, T, 1), patches per token
        for index, block in enumerate(self):
            assert isinstance(block, Block)  # a ViT has no others
            attended, keys = attend(block.attention, block.norm1(tokens), size)
            tokens = tokens + block.dropout(block.scale1(attended))
            if merged := self.schedule.get(index, 0):
                tokens, size = merge(tokens, size, keys.unflatten(-1, (block.attention.heads, -1)), merged)
            tokens = tokens + block.dropout(block.scale2(block.mlp(block.norm2(tokens))))
        return tokens


def attend(attention: Attention, tokens: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention in which a token counts as often as it has patches, and the keys `[N, T, D]`."""
    keys = attention.key(tokens)
    q, k, v = (
        attention.split_heads(each) for each in (attention.query(tokens), keys, attention.value(tokens))
    )
    weight = size.log().transpose(1, 2).unsqueeze(1).to(q.dtype)  # (N, 1, 1, T), added to the scores
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=weight)
    return attention.proj(mixed.transpose(1, 2).flatten(2)), keys


def merge(tokens: Tensor, size: Tensor, keys: Tensor, merged: int) -> tuple[Tensor, Tensor]:
    """Merge the most similar patches into the means of their pairs.

    Args:
        tokens: `[N, T, D]`, the class token first.
        size: `[N, T, 1]`, how many patches each token stands for.
        keys: `[N, T, h, d]`, attention's keys by head; their mean over the heads is compared.
        merged: how many patches go into others.

    Returns:
        The tokens `[N, T - merged, D]` and their sizes: the class token, what is left of the patches at
        even places, all patches at odd places.
    """
    unit = F.normalize(keys.detach().mean(2), dim=-1)  # (N, T, d); the choice has no gradient
    a, b = unit[:, KEPT::2], unit[:, KEPT + 1 :: 2]
    best, closest = (a @ b.transpose(1, 2)).max(-1)  # (N, A)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, left = order[:, :merged], order[:, merged:].sort(dim=-1).values
    fixed = torch.arange(KEPT, device=tokens.device).expand(len(tokens), -1)
    odd = torch.arange(KEPT + 1, tokens.shape[1], 2, device=tokens.device).expand(len(tokens), -1)
    stays = torch.cat([fixed, KEPT + 2 * left, odd], dim=1)  # (N, T - merged), places before the merge
    goes = KEPT + 2 * source
    target = KEPT + left.shape[1] + closest.gather(1, source)  # (N, merged), places after it
    weighted = tokens * size
    total = picked(size, stays).scatter_add(1, target.unsqueeze(-1), picked(size, goes))
    spread = target.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return picked(weighted, stays).scatter_add(1, spread, picked(weighted, goes)) / total, total


def picked(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens `[N, n, D]` at `places`, `[N, n]`."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def merge_tokens(model: ViT, schedule: Mapping[int, int]) -> ViT:
    """Let the blocks of `model` merge tokens from now on, in place; an empty schedule undoes it.

    Raises:
        ConfigError: for a model whose attention or pooling is not the paper's; merging would change it.
    """
    config = model.config
    others = ("registers", "qk_norm", "rotary", "attention_bias")
    unlike = [name for name in others if getattr(config, name)]
    unlike += [] if config.pooling == "class" else [f"pooling {config.pooling}"]
    if schedule and unlike:
        raise ConfigError(f"tokens merge in models that read the class token alone; this one has {unlike[0]}")
    blocks = MergingBlocks(model.blocks, schedule) if schedule else nn.Sequential(*model.blocks)
    model.blocks = blocks
    return model
