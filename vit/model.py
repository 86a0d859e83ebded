"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), on one page.

Read it from the top: `ViT` has equations 1 and 4, `Block` 2 and 3, `Attention` 5 to 8. Letters in the
shapes: N images, T tokens (class token, patches, registers), D width, h heads, d = D / h features per
head, P patch size. The paper's model is the default of `ViTConfig`; each other field adds what later families
have, and is named where it is read.
"""

# To mypy, calling a PyTorch module gives Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.config import ConfigError, ViTConfig


class ViT(nn.Module):
    """The whole model: pixels to logits, or to features where `classes` is 0."""

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
        # After pooling the norm is as wide as what pooling gives.
        width = config.pooled if config.final_norm == "after" else config.width
        self.norm = nn.Identity() if config.final_norm == "none" else nn.LayerNorm(width, config.norm_epsilon)
        self.pool = AttentionPool(config) if config.pooling == "attention" else None
        self.projection = nn.Linear(config.pooled, config.projection) if config.projection else nn.Identity()
        self.head = _make_head(config)
        self.apply(_initialize)
        query = None if self.pool is None else self.pool.query
        for tokens in (self.class_token, self.position, self.registers, query):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            pixels: uint8, or float in 0..255, `[N, H, W, 3]`.

        Returns:
            float `[N, classes]`; without a head the features, `[N, D]` or `[N, 2 D]`.
        """
        return self.head(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Return the input of the head, `[N, D]`: by default the class token after the last norm."""
        features = self.projection(self.pool_tokens(self.blocks(self.embed(pixels))))
        # Plain operators, as transformers has them: ReduceL2 and Div in ONNX.
        return features / features.norm(dim=-1, keepdim=True) if self.config.cosine_head else features

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the sequence `[N, T, D]` that enters the first block (equation 1)."""
        tokens = self.patch_embedding(self.normalize(pixels))  # (N, patches, D)
        images = tokens.shape[0]
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(images, -1, -1), tokens], dim=1)
        tokens = tokens + self.position
        if self.registers is not None:
            tokens = torch.cat([tokens, self.registers.expand(images, -1, -1)], dim=1)
        return self.pre_norm(self.dropout(tokens))

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """Pool `[N, T, D]` into one vector per image: the normalized class token (equation 4) by default."""
        config = self.config
        if config.pooling == "class":
            return self.norm(tokens[:, 0])  # (N, D)
        before = self.norm if config.final_norm == "before" else nn.Identity()
        if config.pooling == "class_and_last":
            pooled = torch.cat([before(tokens[:, 0]), before(tokens[:, -1])], dim=-1)  # (N, 2 D)
        elif self.pool is not None:
            pooled = self.pool(before(tokens))  # (N, D)
        else:
            tokens = before(tokens)
            pooled = tokens[:, int(config.class_token) : config.positions].mean(1)  # (N, D), of the patches
            if config.pooling == "class_and_mean":
                pooled = torch.cat([tokens[:, 0], pooled], dim=-1)  # (N, 2 D)
        return self.norm(pooled) if config.final_norm == "after" else pooled


class Normalize(nn.Module):
    """Pixels normalized by the mean and deviation that the patch embedding was trained on.

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
        """Normalize pixels in 0..255, `[N, H, W, 3]` to `[N, 3, H, W]`."""
        normalized = (pixels.to(self.mean.dtype) - self.mean) / self.std
        return normalized.permute(0, 3, 1, 2)  # (N, 3, H, W)


class PatchEmbedding(nn.Conv2d):
    """Cut the image into P x P patches and project each one linearly (x_p E in equation 1)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Project `[N, 3, H, W]` to one token per patch, `[N, H / P · W / P, D]`, row by row."""
        grid = super().forward(images)  # (N, D, H / P, W / P)
        return grid.flatten(2).transpose(1, 2)  # (N, patches, D)


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
        """Return the tokens after the block, `[N, T, D]` to `[N, T, D]`."""
        tokens = tokens + self.dropout(self.scale1(self.attention(self.norm1(tokens))))
        return tokens + self.dropout(self.scale2(self.mlp(self.norm2(tokens))))


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

    def forward(self, tokens: Tensor) -> Tensor:
        """Let each token attend to all tokens, `[N, T, D]` to `[N, T, D]`."""
        return self.mix(*self.queries_and_keys(tokens), tokens, self.bias)

    def queries_and_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries and the keys of `[N, T, D]`, each `[N, h, T, d]` (equation 5)."""
        q, k = split_heads(self.query(tokens), self.heads), split_heads(self.key(tokens), self.heads)
        if hasattr(self, "query_norm"):
            q, k = self.query_norm(q), self.key_norm(k)
        if hasattr(self, "turn"):
            q, k = apply_rotary(q, self.turn), apply_rotary(k, self.turn)
        return q, k

    def mix(self, q: Tensor, k: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Mix the values of the tokens by their scores, and project the heads (equations 6 to 8).

        Args:
            q: queries, `[N, h, T, d]`.
            k: keys, `[N, h, T, d]`.
            tokens: `[N, T, D]`, whose values are mixed.
            bias: added to the scores `[N, h, T, T]`, or None.
        """
        mixed = F.scaled_dot_product_attention(q, k, split_heads(self.value(tokens), self.heads), bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (N, h, T, d) → (N, T, h, d) → (N, T, D)


def split_heads(features: Tensor, heads: int) -> Tensor:
    """Split the features of tokens into heads, `[N, T, D]` to `[N, h, T, d]`."""
    return features.unflatten(-1, (heads, -1)).transpose(1, 2)  # (N, T, h, d) → (N, h, T, d)


def apply_rotary(features: Tensor, turn: Tensor) -> Tensor:
    """Rotate each pair (feature i, feature i + d / 2) of `[N, h, T, d]` by the token's angle (RoPE).

    `turn` has cosine and sine of the angles, `[2, T, d]` (arXiv 2104.09864).
    """
    cosine, sine = turn  # (T, d) each
    first, second = features.chunk(2, -1)  # (N, h, T, d / 2) each
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
        """Compute each token by itself, `[N, T, D]` to `[N, T, D]`."""
        hidden = self.fc1(tokens)  # (N, T, mlp_width)
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
        """Scale the features of `[N, T, D]`."""
        return tokens * self.factor


class AttentionPool(nn.Module):
    """Pooling by one learned query that attends to all tokens, and an MLP (SigLIP, arXiv 2303.15343)."""

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
        """Pool `[N, T, D]` to `[N, D]`."""
        query = self.query.expand(tokens.shape[0], -1, -1)  # (N, 1, D)
        q, k, v = (split_heads(each, self.heads) for each in (query, self.key(tokens), self.value(tokens)))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (N, h, 1, d)
        pooled = self.proj(mixed.transpose(1, 2).flatten(2))[:, 0]  # (N, 1, h, d) → (N, 1, D) → (N, D)
        return pooled + self.mlp(self.norm(pooled))


def _make_head(config: ViTConfig) -> nn.Module:
    """Return one linear layer, behind a tanh layer where a pre-trained head has one (section 3.1)."""
    if not config.classes:
        return nn.Identity()
    if config.representation is None:
        return nn.Linear(config.features, config.classes)
    return nn.Sequential(
        nn.Linear(config.features, config.representation),
        nn.Tanh(),
        nn.Linear(config.representation, config.classes),
    )


# --- New models, and the shapes of their weights ---


def new_model(config: ViTConfig, seed: int) -> ViT:
    """Return a model with random weights; the global random state stays.

    Args:
        config: the shape.
        seed: the weights depend on it alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViT(config)


def _initialize(module: nn.Module) -> None:
    """Give a layer Xavier's weights and zero biases: narrow models learn faster from these.

    The authors' code does the same in the blocks; its patch embedding has LeCun's weights, and its class
    token and head start at zero.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight.flatten(1))  # (out, in), the patch embedding's too
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def compare_shapes(
    config: ViTConfig, found: Mapping[str, Sequence[int]]
) -> tuple[list[str], list[str], list[str]]:
    """Compare the shapes `found` with those of a model, which takes no memory for it.

    Returns names that are missing, names that are left over, and one sentence per shape that differs. A
    config that is far larger than the tensors is a `ConfigError`.
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
