"""First step of the model: pixels are normalized by the mean and deviation of the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vit.config import ViTConfig


class Normalize(nn.Module):
    """Pixels in 0..255, `[N, H, W, 3]`, to what the patch embedding was trained on, `[N, 3, H, W]`.

    The model's own first step, so that nobody who runs it can get the mean and deviation wrong.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        # Not persistent: they are the config's, and the file should hold each fact once.
        self.register_buffer("mean", torch.tensor(config.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        normalized = (pixels.to(self.mean.dtype) - self.mean) / self.std
        return normalized.permute(0, 3, 1, 2)
