"""Numbers of tokens that the blocks of a model merge. Known without torch."""

from __future__ import annotations

from vit.config import ConfigError, ViTConfig

KEPT = 1  # tokens that never merge: the class token


def middle_schedule(config: ViTConfig, merged: int) -> dict[int, int]:
    """Return `merged` patches per block for the middle half of the blocks, as `python -m export` merges them.

    Raises:
        ConfigError: where the model has too few patches for so many.
    """
    plain = ViTConfig()
    special = ("class_token", "registers", "pooling", "attention_bias", "rotary", "qk_norm")
    if merged and any(getattr(config, name) != getattr(plain, name) for name in special):
        raise ConfigError(
            "token merging fits models with a class token that is read, no registers and plain attention; "
            "leave --merge-tokens out for this model"
        )
    first = config.depth // 4
    blocks = range(config.depth)[first : max(3 * config.depth // 4, first + 1)][: config.depth - 1]
    most = (config.tokens - KEPT) // (len(blocks) + 1) if blocks else 0
    if not 0 <= merged <= most:
        raise ConfigError(
            f"expected 0 to {most} merged tokens per block for {config.tokens - KEPT} patches and "
            f"{len(blocks)} blocks that merge, found {merged}"
        )
    return dict.fromkeys(blocks, merged) if merged else {}
