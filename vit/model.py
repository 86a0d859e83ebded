"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), on one page.

Letters in the shape comments: N images, T tokens (patches and the class token), D width,
h heads, d = D / h features a head.
"""

# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class PatchEmbedding(nn.Conv2d):
    """Cut the image into P x P patches and project each one linearly (x_p E in equation 1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2).transpose(1, 2)  # (N, T - 1, D)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, equations 5 to 8)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.proj = nn.Linear(config.width, config.width)

    def split_heads(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, h, T, d)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (self.split_heads(project(tokens)) for project in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (N, T, D)


class MLP(nn.Module):
    """Two linear layers with a GELU between them (section 3.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(tokens), approximate=self.approximate)))


class LayerScale(nn.Module):
    """A learned factor per feature, small at first (arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((config.width,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.factor


class Block(nn.Module):
    """One pre-norm encoder block: attention (equation 2), then the MLP (equation 3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.scale1 = LayerScale(config) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(config)
        self.scale2 = LayerScale(config) if config.layer_scale else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.scale1(self.attention(self.norm1(tokens))))
        return tokens + self.dropout(self.scale2(self.mlp(self.norm2(tokens))))


class ViT(nn.Module):
    """Pixels `uint8 [N, H, W, 3]` (or float in 0..255) to logits `float [N, classes]`.

    With `classes=0` there is no head, and the class token's features `[N, D]` come out.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config)
        self.patch_embedding = PatchEmbedding(config)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.head = make_head(config)
        self.apply(initialize)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def features(self, pixels: Tensor) -> Tensor:
        """The class token after the last block, normalised: equation 4. `[N, D]`."""
        patches = self.patch_embedding(self.normalize(pixels))
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.position  # (N, T, D), equation 1
        tokens = self.blocks(self.dropout(tokens))
        return self.norm(tokens[:, 0])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def make_head(config: ViTConfig) -> nn.Module:
    """One linear layer, behind a tanh layer where a pre-trained head has one (section 3.1)."""
    if not config.classes:
        return nn.Identity()
    if config.representation is None:
        return nn.Linear(config.width, config.classes)
    return nn.Sequential(
        nn.Linear(config.width, config.representation),
        nn.Tanh(),
        nn.Linear(config.representation, config.classes),
    )


def initialize(module: nn.Module) -> None:
    """Xavier's weights and zero biases, as the paper's authors initialise (narrow models learn faster so)."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight.flatten(1))  # (out, in), the patch embedding's too
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def new_model(config: ViTConfig, seed: int) -> ViT:
    """A model with first weights that depend on the seed alone, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config)
