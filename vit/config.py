"""The shape of a Vision Transformer, the named sizes of the literature, and schedules of merged tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from runtime.errors import InputError
from runtime.text import suggest


class ConfigError(InputError):
    """A configuration that describes no possible model."""


MOST = 2**24  # of any size: far above all models, and a product of two is still a number of elements
CHOICES = {
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "pooling": ("class", "mean", "class_and_mean", "class_and_last", "attention"),
    "final_norm": ("before", "after", "none"),
}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _all(accepts: Callable[[object], bool], count: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and len(value) == count and all(map(accepts, value))


# Type of a field → what it must be in words, and the test: configurations come out of files.
KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "int": ("a whole number", _is_whole),
    "int | None": ("a whole number or null", lambda value: value is None or _is_whole(value)),
    "float": ("a number", is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a word", lambda value: isinstance(value, str)),
    "tuple[int, int]": ("two whole numbers", _all(_is_whole, 2)),
    "tuple[float, float, float]": ("three numbers", _all(is_number, 3)),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The architecture of a ViT, without the weights.

    Sizes are in pixels, widths in features. The default is ViT-B/16 at 224, Table 1 of
    arXiv 2010.11929.

    Raises:
        ConfigError: for sizes that do not divide, or that are not positive.
    """

    image_size: tuple[int, int] = (224, 224)  # (height, width)
    patch_size: int = 16
    width: int = 768  # D, the latent vector size
    depth: int = 12  # L, the number of blocks
    heads: int = 12  # k, the number of attention heads
    mlp_width: int = 3072
    classes: int = 1000  # 0: no head, the model returns the pooled features
    representation: int | None = None  # width of the tanh layer some pre-trained heads have
    projection: int | None = None  # width of a linear layer between pooling and head (CLIP)
    cosine_head: bool = False  # the head reads features of length 1: logits are scaled cosines (CLIP, SigLIP)
    layer_scale: bool = False  # a learned factor per feature on each residual branch (CaiT, DINOv2)
    norm_epsilon: float = 1e-6  # 1e-12 in Hugging Face's files
    activation: str = "gelu"  # or gelu_tanh (Google's own files), quick_gelu (CLIP), silu (gated MLPs)
    dropout: float = 0.0  # after each linear layer but query, key and value, and after the positions
    class_token: bool = True  # False: patches only, and the pooling is another than "class"
    registers: int = 0  # tokens without a place in the image, at the end of the sequence (arXiv 2309.16588)
    pooling: str = "class"  # or mean, class_and_mean (DINOv2), class_and_last (DeiT), attention (SigLIP)
    final_norm: str = "before"  # the last LayerNorm: before or after pooling, or none
    pre_norm: bool = False  # a LayerNorm before the first block (CLIP)
    qk_norm: bool = False  # a LayerNorm of each head's queries and keys (arXiv 2302.05442)
    gated: bool = False  # MLP(x) = fc2(activation(gate(x)) * fc1(x)) (SwiGLU, arXiv 2002.05202)
    rotary: bool = False  # queries and keys are rotated by an angle for each place (RoPE, arXiv 2104.09864)
    attention_bias: bool = False  # a learned number is added to each score, head by head (BEiT)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in 0..1, per channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for field in fields(self):
            expected, accepts = KINDS[str(field.type)]
            if not accepts(found := getattr(self, field.name)):
                raise ConfigError(f"{field.name} must be {expected}, found {found!r:.60}")
        self._check_numbers()
        self._check_choices()
        height, width = self.image_size
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(_no_multiple(self.image_size, self.patch_size))
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")
        for name, least in (("std", min(self.std)), ("norm_epsilon", self.norm_epsilon)):
            if least <= 0:
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be from 0 to below 1, found {self.dropout}")
        for name in ("representation", "projection"):
            if (size := getattr(self, name)) is not None and not 1 <= size <= MOST:
                raise ConfigError(f"{name} must be 1 to {MOST:,}, found {size:,}")

    def _check_numbers(self) -> None:
        height, width = self.image_size
        positive = dict(patch_size=self.patch_size, width=self.width, depth=self.depth, heads=self.heads)
        positive |= dict(mlp_width=self.mlp_width, height=height, image_width=width)
        for name, value in positive.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        for name, value in (positive | dict(classes=self.classes, registers=self.registers)).items():
            if value > MOST:
                raise ConfigError(f"{name} must be at most {MOST:,}, found {value:,}")
        for name in ("classes", "registers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (none) or more, found {getattr(self, name)}")

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if (found := getattr(self, name)) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, found {found!r}")
        if not self.class_token and self.pooling.startswith("class"):
            raise ConfigError(f"pooling {self.pooling} needs a class token; without one, mean or attention")
        if self.pooling == "class_and_last" and not self.registers:
            raise ConfigError("pooling class_and_last reads the last register, and there are no registers")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def positions(self) -> int:
        """Number of tokens with a position embedding: one per patch, and the class token."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def tokens(self) -> int:
        """Length of the sequence: the patches, the class token and the registers."""
        return self.positions + self.registers

    @property
    def pooled(self) -> int:
        """Number of features that pooling gives."""
        return self.width * (2 if self.pooling in ("class_and_mean", "class_and_last") else 1)

    @property
    def features(self) -> int:
        """Number of features that the head reads."""
        return self.projection or self.pooled

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as a checkpoint stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ViTConfig:
        """Return the config that `to_dict` described, also after a trip through JSON.

        Raises:
            ConfigError: for a name that is not a field, or a value that makes no model.
        """
        if not isinstance(document, Mapping):
            raise ConfigError(f"expected a configuration with named fields, found {document!r:.60}")
        known = {field.name for field in fields(cls)}
        if unknown := ", ".join(sorted(set(document) - known)):
            raise ConfigError(f"unknown configuration {unknown:.60}; known: {', '.join(sorted(known))}")
        values: Any = {n: tuple(value) if isinstance(value, list) else value for n, value in document.items()}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"not a ViT configuration: {error}") from error


# Fields that belong to a head: a new one has none of them.
PLAIN_HEAD: Mapping[str, Any] = {"representation": None, "projection": None, "cosine_head": False}


def _no_multiple(size: tuple[int, int], patch: int) -> str:
    """Say which image sizes near this one a patch size divides."""
    below = "x".join(str(each // patch * patch) for each in size)
    above = "x".join(str(-(-each // patch) * patch) for each in size)
    smaller = f"{below} or " if min(size) >= patch else ""
    return f"image_size {size[0]}x{size[1]} is not a multiple of patch_size {patch}; take {smaller}{above}"


# Tiny and Small are DeiT's (arXiv 2012.12877, Table 1), the others Table 1 of arXiv 2010.11929.
SIZES: Mapping[str, ViTConfig] = {
    "tiny": ViTConfig(width=192, depth=12, heads=3, mlp_width=768),
    "small": ViTConfig(width=384, depth=12, heads=6, mlp_width=1536),
    "base": ViTConfig(width=768, depth=12, heads=12, mlp_width=3072),
    "large": ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096),
    "huge": ViTConfig(width=1280, depth=32, heads=16, mlp_width=5120, patch_size=14),
}


def make_config(size: str, **changes: Any) -> ViTConfig:
    """Return a named size with some fields changed, e.g. `make_config("tiny", classes=10)`.

    Args:
        size: tiny, small, base, large or huge.
        changes: fields of `ViTConfig`.

    Raises:
        ConfigError: for an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; known: {', '.join(SIZES)}{suggest(size, SIZES)}")
    return replace(SIZES[size], **changes)


def check_grid(old: ViTConfig, new: ViTConfig) -> None:
    """Refuse another grid of patches for positions in the attention, which cannot be interpolated."""
    if old.grid != new.grid and (old.rotary or old.attention_bias):
        height, width = old.image_size
        raise ConfigError(f"the positions of this model are made for {height}x{width}; keep that size")


def check_mergeable(config: ViTConfig) -> None:
    """Refuse a model whose computation changes when tokens merge: it differs from the paper's in a field."""
    plain = ViTConfig()
    for name in ("class_token", "registers", "pooling", "attention_bias", "rotary", "qk_norm"):
        if (found := getattr(config, name)) != getattr(plain, name):
            raise ConfigError(
                "tokens merge in models with a class token that is read, no registers and plain attention, "
                f"found {name} {found}; leave --merge-tokens out for this model"
            )


def merge_schedule(config: ViTConfig, merged: int) -> dict[int, int]:
    """Return `merged` patches per block for the middle half of the blocks, as `python -m export` merges them.

    Returns:
        The number of patches to merge by the index of the block; empty where `merged` is 0.

    Raises:
        ConfigError: where the model has too few patches for so many, or cannot merge any.
    """
    if merged:
        check_mergeable(config)
    first = config.depth // 4
    blocks = range(config.depth)[first : max(3 * config.depth // 4, first + 1)][: config.depth - 1]
    patches = config.tokens - 1  # the class token never merges
    most = patches // (len(blocks) + 1) if blocks else 0
    if not 0 <= merged <= most:
        of = f"{patches} patches and {len(blocks)} blocks that merge"
        raise ConfigError(f"expected 0 to {most} merged tokens per block for {of}, found {merged}")
    return dict.fromkeys(blocks, merged) if merged else {}
