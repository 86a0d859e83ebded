"""Structure of a model: shapes, parameters and multiply-adds, one row per step."""

from __future__ import annotations

from dataclasses import dataclass

from vit.config import ViTConfig


@dataclass(frozen=True)
class Row:
    """One step of the forward pass, for one image."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int  # multiply-adds of the matrix products; norms, softmax and GELU are not counted, as usual


def summary_rows(config: ViTConfig) -> list[Row]:
    """The steps of the model of `config`, in the order of the computation."""
    width, tokens, mlp = config.width, config.tokens, config.mlp_width
    patches = config.grid[0] * config.grid[1]
    patch = 3 * config.patch_size**2
    scale = width if config.layer_scale else 0
    height, breadth = config.image_size
    rows = [
        Row("pixels", (height, breadth, 3), 0, 0),
        Row("patch_embedding", (patches, width), width * (patch + 1), patches * patch * width),
        Row("class_token, position", (tokens, width), width * (tokens + config.class_token), 0),
    ]
    if config.pre_norm:
        rows.append(Row("pre_norm", (tokens, width), 2 * width, 0))
    inside = 4 * width // config.heads if config.qk_norm else 0
    inside += config.heads * tokens**2 if config.attention_bias else 0
    first = 2 if config.gated else 1  # layers in front of the MLP's product
    for index in range(config.depth):
        # Four projections of every token, then queries by keys and probabilities by values.
        attention = 4 * tokens * width * width + 2 * tokens * tokens * width
        parameters = 2 * width + 4 * width * (width + 1) + scale + inside
        rows.append(Row(f"blocks.{index}.attention", (tokens, width), parameters, attention))
        parameters = 2 * width + first * mlp * (width + 1) + width * (mlp + 1) + scale
        rows.append(
            Row(f"blocks.{index}.mlp", (tokens, width), parameters, (1 + first) * tokens * width * mlp)
        )
    features = config.features
    if config.final_norm != "none":
        normed = features if config.final_norm == "after" else width
        rows.append(Row("norm", (features,), 2 * normed, 0))
    if config.pooling == "attention":
        parameters = width + 3 * width * (width + 1) + 2 * width + mlp * (width + 1) + width * (mlp + 1)
        macs = (2 * tokens + 1) * width * width + 2 * tokens * width + 2 * width * mlp
        rows.append(Row("pool", (width,), parameters, macs))
    if config.classes and config.representation:
        features = config.representation
        rows.append(Row("head.0", (features,), features * (config.features + 1), features * config.features))
    if config.classes:
        parameters = config.classes * (features + 1)
        rows.append(Row("head", (config.classes,), parameters, config.classes * features))
    return rows


def summary_text(config: ViTConfig) -> str:
    """The rows as a table, and their sums."""
    rows = summary_rows(config)
    lines = [f"{'layer':<24}{'output':>16}{'parameters':>14}{'MMACs':>10}"]
    for row in rows:
        shape = " x ".join(map(str, row.output))
        lines.append(f"{row.name:<24}{shape:>16}{row.parameters:>14,}{row.macs / 1e6:>10.2f}")
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    lines.append(f"{'total':<24}{'':>16}{parameters:>14,}{macs / 1e6:>10.2f}")
    lines.append(f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs an image, ")
    lines[-1] += f"{4 * parameters / 2**20:.1f} MiB in float32, {parameters / 2**20:.1f} MiB in INT8"
    return "\n".join(lines)
