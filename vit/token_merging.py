"""Token merging (ToMe, arXiv 2210.09461) for training: the model of `vit/model.py` on fewer tokens.

Weights, names and sizes stay; only `blocks` is another kind of sequence. `calibration/token_merging` writes
the same arithmetic into the graph; a test holds the two to 1e-4 of each other. The letters in the shapes are
those of `vit/model.py`.
"""

# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.config import check_mergeable
from vit.model import Attention, Block, ViT

KEPT = 1  # tokens that never merge: the class token


class MergingBlocks(nn.Sequential):
    """A model's blocks, of which those in `schedule` merge that many patches between attention and MLP."""

    def __init__(self, blocks: nn.Sequential, schedule: Mapping[int, int]) -> None:
        super().__init__(*blocks)
        self.schedule = dict(schedule)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run all blocks, `[N, T, D]` to `[N, T - merged patches, D]`."""
        size = tokens.new_ones(*tokens.shape[:2], 1)  # (N, T, 1), patches per token
        for index, block in enumerate(self):
            assert isinstance(block, Block)  # a ViT has no others
            attended, keys = attend_merged(block.attention, block.norm1(tokens), size)
            tokens = tokens + block.dropout(block.scale1(attended))
            if merged := self.schedule.get(index, 0):
                tokens, size = merge_patches(tokens, size, keys, merged)
            tokens = tokens + block.dropout(block.scale2(block.mlp(block.norm2(tokens))))
        return tokens


def attend_merged(attention: Attention, tokens: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Run attention in which a token counts once per patch that it stands for (`size`, `[N, T, 1]`).

    Returns the output `[N, T, D]` and the keys `[N, h, T, d]`.
    """
    q, k = attention.queries_and_keys(tokens)
    weight = size.log().transpose(1, 2).unsqueeze(1).to(q.dtype)  # (N, 1, 1, T), added to the scores
    return attention.mix(q, k, tokens, weight), k


def merge_patches(tokens: Tensor, size: Tensor, keys: Tensor, merged: int) -> tuple[Tensor, Tensor]:
    """Merge the most similar patches into the means of their pairs.

    Args:
        tokens: `[N, T, D]`, the class token first.
        size: `[N, T, 1]`, number of patches that each token stands for.
        keys: `[N, h, T, d]`, attention's keys; their mean over the heads is compared.
        merged: number of patches that go into others.

    Returns:
        The tokens `[N, T - merged, D]` and their sizes: the class token, what is left of the patches at
        even indices, all patches at odd indices.
    """
    unit = F.normalize(keys.detach().mean(1), dim=-1)  # (N, T, d); the choice has no gradient
    a, b = unit[:, KEPT::2], unit[:, KEPT + 1 :: 2]  # (N, A, d), (N, B, d)
    best, closest = (a @ b.transpose(1, 2)).max(-1)  # (N, A)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, left = order[:, :merged], order[:, merged:].sort(dim=-1).values
    fixed = torch.arange(KEPT, device=tokens.device).expand(len(tokens), -1)
    odd = torch.arange(KEPT + 1, tokens.shape[1], 2, device=tokens.device).expand(len(tokens), -1)
    stays = torch.cat([fixed, KEPT + 2 * left, odd], dim=1)  # (N, T - merged), indices before the merge
    goes = KEPT + 2 * source  # (N, merged)
    target = KEPT + left.shape[1] + closest.gather(1, source)  # (N, merged), indices after it
    weighted = tokens * size
    total = _take(size, stays).scatter_add(1, target.unsqueeze(-1), _take(size, goes))
    spread = target.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return _take(weighted, stays).scatter_add(1, spread, _take(weighted, goes)) / total, total


def _take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens `[N, n, D]` at `indices`, `[N, n]`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def set_merging(model: ViT, schedule: Mapping[int, int]) -> ViT:
    """Let the blocks of `model` merge tokens from now on, in place.

    Args:
        model: changed and returned.
        schedule: number of patches that a block merges, by its index; empty: the blocks merge none again.

    Raises:
        ConfigError: for a model whose attention or pooling is not the paper's; merging would change it.
    """
    if schedule:
        check_mergeable(model.config)
    model.blocks = MergingBlocks(model.blocks, schedule) if schedule else nn.Sequential(*model.blocks)
    return model
