"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), on one page.

Letters in the shape comments: N images, T tokens (class token, patches, registers), D width,
h heads, d = D / h features per head. The paper's model is the default of `ViTConfig`; each other
field adds what later families have, and is named where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.config import ConfigError, ViTConfig

# --- First step of the model: pixels are normalized by the mean and deviation of the config ---


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


# --- Last LayerNorm of the model, and the head that gives the logits ---


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


# --- The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), on one page ---


# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"


class PatchEmbedding(nn.Conv2d):
    """Cut the image into P x P patches and project each one linearly (x_p E in equation 1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2).transpose(1, 2)  # (N, T - 1, D)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, equations 5 to 8)."""

    turn: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.proj = nn.Linear(config.width, config.width)
        head, tokens = config.width // config.heads, config.tokens
        if config.qk_norm:
            self.query_norm = nn.LayerNorm(head, eps=config.norm_epsilon)
            self.key_norm = nn.LayerNorm(head, eps=config.norm_epsilon)
        if config.rotary:  # the cosine and the sine of each token's angles; without a place: 1 and 0
            self.register_buffer("turn", torch.stack([torch.ones(tokens, head), torch.zeros(tokens, head)]))
        self.bias = (
            nn.Parameter(torch.zeros(1, self.heads, tokens, tokens)) if config.attention_bias else None
        )

    def split_heads(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, h, T, d)

    def queries_and_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.split_heads(self.query(tokens)), self.split_heads(self.key(tokens))
        if hasattr(self, "query_norm"):
            q, k = self.query_norm(q), self.key_norm(k)
        if hasattr(self, "turn"):
            q, k = turned(q, self.turn), turned(k, self.turn)
        return q, k  # (N, h, T, d)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k = self.queries_and_keys(tokens)
        mixed = F.scaled_dot_product_attention(q, k, self.split_heads(self.value(tokens)), self.bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (N, T, D)


def turned(features: Tensor, turn: Tensor) -> Tensor:
    """Turn each pair (feature i, feature i + d / 2) by the token's angle: `[N, h, T, d]`."""
    cosine, sine = turn  # (T, d) each
    first, second = features.chunk(2, -1)
    return features * cosine + torch.cat([-second, first], -1) * sine


class MLP(nn.Module):
    """Two linear layers with a GELU between them (section 3.1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.gate = nn.Linear(config.width, config.mlp_width) if config.gated else None
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        hidden = self.activation(hidden) if self.gate is None else self.activation(self.gate(tokens)) * hidden
        return self.fc2(self.dropout(hidden))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


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


class AttentionPool(nn.Module):
    """One learned query asks all tokens, and an MLP follows (SigLIP, arXiv 2303.15343)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.zeros(1, 1, config.width))
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = MLP(replace(config, gated=False))

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(tokens.shape[0], -1, -1)
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (query, self.key(tokens), self.value(tokens))
        )
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]
        return pooled + self.mlp(self.norm(pooled))  # (N, D)


class ViT(nn.Module):
    """Pixels `uint8 [N, H, W, 3]` (or float in 0..255) to logits `float [N, classes]`.

    With `classes=0` there is no head, and the pooled features `[N, D]` come out (twice as many where
    the config's pooling reads two).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config)
        self.patch_embedding = PatchEmbedding(config)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.position = nn.Parameter(torch.zeros(1, config.positions, config.width))
        self.registers = (
            nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_epsilon) if config.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = make_norm(config)
        self.pool = AttentionPool(config) if config.pooling == "attention" else None
        self.head = make_head(config)
        self.apply(initialize)
        query = None if self.pool is None else self.pool.query
        for tokens in (self.class_token, self.position, self.registers, query):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)

    def embed(self, pixels: Tensor) -> Tensor:
        """The sequence that enters the first block: equation 1. `[N, T, D]`."""
        tokens = self.patch_embedding(self.normalize(pixels))
        images = tokens.shape[0]
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(images, -1, -1), tokens], dim=1)
        tokens = tokens + self.position
        if self.registers is not None:
            tokens = torch.cat([tokens, self.registers.expand(images, -1, -1)], dim=1)
        return self.pre_norm(self.dropout(tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """One vector per image out of `[N, T, D]`: the class token, normalized, unless the config differs."""
        config = self.config
        if config.pooling == "class":
            return self.norm(tokens[:, 0])  # equation 4
        before = self.norm if config.final_norm == "before" else nn.Identity()
        if config.pooling == "class_and_last":
            pooled = torch.cat([before(tokens[:, 0]), before(tokens[:, -1])], dim=-1)
        elif self.pool is not None:
            pooled = self.pool(before(tokens))
        else:
            tokens = before(tokens)
            patches = tokens[:, int(config.class_token) : config.positions]
            pooled = patches.mean(1)
            if config.pooling == "class_and_mean":
                pooled = torch.cat([tokens[:, 0], pooled], dim=-1)
        return self.norm(pooled) if config.final_norm == "after" else pooled

    def features(self, pixels: Tensor) -> Tensor:
        """Return the input of the head, `[N, D]`: by default the class token after the last norm."""
        return self.pooled(self.blocks(self.embed(pixels)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def initialize(module: nn.Module) -> None:
    """Xavier's weights and zero biases (narrow models learn faster so).

    The authors' code does the same in the blocks; its patch embedding has LeCun's weights, and its class
    token and head begin at zero.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight.flatten(1))  # (out, in), the patch embedding's too
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def compare_shapes(
    config: ViTConfig, found: Mapping[str, Sequence[int]]
) -> tuple[list[str], list[str], list[str]]:
    """Compare the shapes of tensors with those of a model, which takes no memory for it.

    Args:
        config: of the model.
        found: the shapes by the names of the tensors.

    Returns:
        names that are missing, names that are left over, and sentences on shapes that are others.

    Raises:
        ConfigError: for a config that is far larger than the tensors.
    """
    blocks = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    if blocks != config.depth:  # first: even without weights, a block takes time to make
        raise ConfigError(f"depth {config.depth:,} and the tensors of {blocks:,} blocks do not fit")
    try:
        with torch.device("meta"):
            shapes = {name: tuple(value.shape) for name, value in ViT(config).state_dict().items()}
    except RuntimeError as error:  # torch counts the elements even where it stores none
        raise ConfigError(f"its sizes make tensors that no memory holds ({error})") from error
    missing = sorted(set(shapes) - set(found))
    left_over = sorted(set(found) - set(shapes))
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in found and tuple(found[name]) != shape
    ]
    return missing, left_over, misshapen


def new_model(config: ViTConfig, seed: int) -> ViT:
    """Return a model whose first weights depend on the seed alone; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config)
