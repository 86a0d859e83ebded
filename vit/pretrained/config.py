"""Configuration of an imported model: from its tensors, and for the rest from the description of the source.

The number of attention heads is often in neither. Trained weights show it: training scales each head as a
whole, so the rows of its value weights and the columns of its output projection have norms of their own. If
they are split at the true boundaries, the variance of the logarithms of these norms between the heads is
largest over the variance within them (the F ratio of an analysis of variance).

| median F over the layers | true heads | next best number |
|---|---|---|
| ViT-B/16, ImageNet | 12: 151 | 24: 73 |
| DINOv2 ViT-S/14 | 6: 241 | 12: 109 |
| text recognition (SVTR, width 120, 2 layers) | 8: 41 | 6: 16 |
| random weights, and runs of minutes on digits (50 models) | 0.1 to 1.9 | at most 1.6 |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from vit.config import CHOICES, SIZES, ConfigError, ViTConfig
from vit.pretrained.description import (
    ONE_CLASS,
    Description,
    SourceError,
    UnstatedError,
    as_fields,
    list_blocks,
    parse_number,
    parse_whole,
    refuse_other_facts,
)
from vit.pretrained.formats import CLIP, GOOGLE, HUGGING_FACE, TIMM, Format, Tensors
from vit.pretrained.preprocessing import View

CLEAR = 5.0  # the smallest F ratio that shows a number of heads
AHEAD = 1.5  # its smallest lead over that of every other number of heads
NARROWEST = 8  # features of a head
ACTIVATIONS = {name: name for name in CHOICES["activation"]}
ACTIVATIONS |= {"gelu_python": "gelu", "quickgelu": "quick_gelu", "swish": "silu"}
ACTIVATIONS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh")
# Architectures of timm whose GELU is the one with tanh; its other SigLIPs have the exact one.
TIMM_TANH = re.compile(
    r"vit_(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip.*|vit_large_patch16_siglip.*_512"
)
# Heads by (width, depth), of timm's and DINOv2's named sizes beside those of `SIZES`.
HEADS = {(each.width, each.depth): each.heads for each in SIZES.values()}
HEADS |= {(256, 14): 4, (320, 14): 5, (384, 36): 6, (512, 12): 8, (512, 20): 8, (640, 12): 10, (1152, 27): 16}
HEADS |= {(1408, 40): 16, (1536, 40): 24, (1664, 48): 16, (4096, 40): 32}
MOST_PATCHES = 2**18  # of an image whose positions no tensor holds: 4096 pixels in patches of 8
MAX_EDGE = 4096  # of an image that a model takes, as in runtime.images.preprocess
PATCHES = (8, 14, 16, 32)  # pixels along an edge, of the models in HEADS
# What transformers takes where config.json leaves it out, as the files of its older versions do with what is
# the default of a `vision_config`; by model type.
EPSILON = dict.fromkeys(("dinov2", "dinov2_with_registers", "vit_msn", "ijepa", "siglip", "siglip2"), 1e-6)
EPSILON |= {"dinov3_vit": 1e-5}
VISION_ACTIVATION = {"clip": "quick_gelu", "metaclip_2": "quick_gelu"}
VISION_ACTIVATION |= {"siglip": "gelu_tanh", "siglip2": "gelu_tanh"}
VISION_HEADS = 12  # of all of these


def build_config(
    form: Format, tensors: Tensors, fields: Mapping[str, Any], description: Description, view: View
) -> tuple[ViTConfig, list[str]]:
    """Return the configuration of an imported model, and one sentence per assumption.

    `tensors` and `fields` (of `ViTConfig`) are those that `convert_tensors` returns. Raises a `ConfigError`
    when the shapes describe no ViT, and a `SourceError` when the source does not state what no shape does, or
    states what cannot be followed.
    """
    assumed = refuse_other_facts(description, tensors)
    if form is TIMM and fields.get("final_norm") == "after" and description.first("global_pool") is None:
        assumed.append("the mean of the patches before the last norm (max and avgmax have the same tensors)")
    width, _, patch_size, _ = tensors["patch_embedding.weight"].shape
    blocks = list_blocks(tensors)
    if blocks != list(map(str, range(len(blocks)))) or not blocks:
        raise ConfigError(f"its {len(blocks)} blocks are not numbered from 0")
    head = next((name for name in ("head.2.weight", "head.weight") if name in tensors), None)
    if head is not None and tensors[head].shape[0] == 1:
        raise SourceError(ONE_CLASS)
    heads, notes = choose_heads(tensors, description, width, len(blocks))
    activation, more = choose_activation(form, description, gated=bool(fields.get("gated")))
    config = ViTConfig(
        patch_size=patch_size,
        width=width,
        depth=len(blocks),
        heads=heads,
        mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        classes=0 if head is None else tensors[head].shape[0],
        representation=tensors["head.0.weight"].shape[0] if head == "head.2.weight" else None,
        layer_scale="blocks.0.scale1.factor" in tensors,
        norm_epsilon=_choose_epsilon(form, description),
        activation=activation,
        mean=view.mean,
        std=view.std,
        **fields,
    )
    return config, [*assumed, *notes, *more]


# --- The number of attention heads ---


def choose_heads(tensors: Tensors, description: Description, width: int, depth: int) -> tuple[int, list[str]]:
    """Return the number of attention heads, and a sentence where it is assumed."""
    if (stated := description.read_heads()) is not None:
        return stated, []
    if (norm := tensors.get("blocks.0.attention.query_norm.weight")) is not None:
        return width // len(norm), []
    if (bias := tensors.get("blocks.0.attention.bias")) is not None:
        return bias.shape[1], []
    if description.model_type in VISION_ACTIVATION and not width % VISION_HEADS:
        return VISION_HEADS, []
    model, patch = f"of width {width} and depth {depth}", tensors["patch_embedding.weight"].shape[-1]
    heads, inferred = HEADS.get((width, depth)), infer_heads(tensors)
    nothing, say = "nothing says how many attention heads it has", "say it with --heads N"
    look = "" if inferred is None else f" (its weights look like {inferred} heads)"
    if heads is None:
        raise UnstatedError(f"{nothing}, and no known model has width {width} and depth {depth}; {say}{look}")
    if patch not in PATCHES:
        rare = f"no known model {model} has patches of {patch} pixels"
        raise UnstatedError(f"{nothing}, and {rare}; {say}{look}")
    if inferred not in (None, heads):
        raise UnstatedError(
            f"{nothing}: known models {model} have {heads}, and its weights look like {inferred}; "
            f"{say} (--heads {inferred} or --heads {heads})"
        )
    found = f"{heads} attention heads, as known models {model} have"
    if inferred == heads:
        return heads, [f"{found}, and as the weights look"]
    return heads, [
        f"{found}; the weights do not show it, and a wrong number gives wrong answers without an error: "
        f"if it has another, {say}"
    ]


def infer_heads(tensors: Tensors) -> int | None:
    """Return the number of heads that the weights show; None where they show none, as untrained ones do."""
    ratios = head_variance_ratios(tensors)
    best = max(ratios, key=lambda heads: ratios[heads], default=None)
    if best is None or ratios[best] < CLEAR:
        return None
    others = (ratio for heads, ratio in ratios.items() if heads != best)
    return best if ratios[best] >= AHEAD * max(others, default=0.0) else None


def head_variance_ratios(tensors: Tensors) -> dict[int, float]:
    """Return the F ratio of each possible number of heads, the median over all layers."""
    rows = [
        (value if match[1] == "value" else value.T).float().norm(dim=1).clamp_min(1e-12).log()
        for name, value in tensors.items()
        if (match := re.fullmatch(r"blocks\.\d+\.attention\.(value|proj)\.weight", name))
    ]
    if len({len(row) for row in rows}) != 1:  # none, or layers that do not fit together
        return {}
    norms, ratios = torch.stack(rows), {}
    width = norms.shape[1]
    for heads in range(2, width // NARROWEST + 1):
        if width % heads == 0:
            groups = norms.reshape(len(norms), heads, -1)
            between = groups.mean(dim=2).var(dim=1) * (width // heads)
            within = groups.var(dim=2).mean(dim=1).clamp_min(1e-12)
            ratios[heads] = float((between / within).median())
    return ratios


def check_heads(tensors: Tensors, heads: int) -> list[str]:
    """Return a sentence where the weights show another number of heads than source or caller state."""
    inferred = infer_heads(tensors)
    if inferred in (None, heads):
        return []
    return [
        f"WARNING: {heads} attention heads were stated, and the weights look like {inferred}: a wrong number "
        f"gives wrong answers without an error; compare an answer with that of --heads {inferred}"
    ]


# --- Other facts that no tensor has ---


def choose_activation(form: Format, description: Description, *, gated: bool) -> tuple[str, list[str]]:
    """Return the activation of the MLPs, and a sentence where it is assumed."""
    stated = description.activation or description.first("hidden_act", "act_layer")
    assumed = ["GELU between the linear layers of the MLPs (--activation)"]
    if (
        gated
        and description.activation is None
        and (form is TIMM or "gated" not in str([*description.facts]))
    ):
        return "silu", []  # SwiGLU, whatever hidden_act says: DINOv2's code has it fixed
    if stated is None and "quickgelu" in description.architecture:
        stated = "quick_gelu"
    if stated is None and (form is GOOGLE or TIMM_TANH.fullmatch(description.architecture)):
        stated = "gelu_tanh"
    if stated is None and form is CLIP:
        stated = VISION_ACTIVATION.get(description.model_type)
        return (stated, []) if stated else ("gelu", assumed)
    if stated is None:
        usual = form is not TIMM or (description.architecture and "siglip" not in description.architecture)
        return "gelu", [] if usual else assumed
    if str(stated) not in ACTIVATIONS:
        known = ", ".join(sorted(set(ACTIVATIONS.values())))
        raise ConfigError(f"expected an activation among {known}, found {stated!r}")
    return ACTIVATIONS[str(stated)], []


def _choose_epsilon(form: Format, description: Description) -> float:
    stated = description.first("layer_norm_eps")
    if stated is not None:
        return parse_number(stated, "layer_norm_eps", above=0)
    if form in (HUGGING_FACE, CLIP):
        return EPSILON.get(description.model_type, 1e-12 if form is HUGGING_FACE else 1e-5)
    clip = re.match(r"vit_.*clip", description.architecture) and description.first("norm_layer") is None
    return 1e-5 if clip else 1e-6


def choose_patch_grid(
    positions: int | None, prefix: int, description: Description, patch_size: int
) -> tuple[int, int, int]:
    """Return rows and columns of patches, and how many of `positions` stand before them.

    The source's own size decides where it fits the number; else the grid is a square, or a `ConfigError`.
    """
    size = _read_image_size(description)
    fits = sorted({prefix, min(prefix, 1), 0}, reverse=True)
    if size is not None:
        rows, columns = size[0] // patch_size, size[1] // patch_size
        if positions is None and not 0 < rows * columns <= MOST_PATCHES:
            raise ConfigError(f"image_size {size} is {rows * columns:,} patches (limit: {MOST_PATCHES:,})")
        if positions is None or positions - rows * columns in fits:
            return rows, columns, 0 if positions is None else positions - rows * columns
    if positions is None:
        raise ConfigError("it has no position embeddings, and no config.json gives image_size")
    for extra in fits:
        rows = math.isqrt(max(positions - extra, 0))
        if rows and rows * rows == positions - extra:
            return rows, rows, extra
    raise ConfigError("the positions are not a square grid, and no config.json gives image_size")


def _read_image_size(description: Description) -> tuple[int, int] | None:
    """Return (height, width) as the source writes it, or None."""
    size = description.first("img_size", "image_size", "input_size")
    size = as_fields(description.first("pretrained_cfg")).get("input_size") if size is None else size
    if size is None:
        return None
    pair = size[-2:] if isinstance(size, (list, tuple)) and len(size) >= 2 else (size, size)
    edges = parse_whole(pair[0], "image_size"), parse_whole(pair[1], "image_size")
    if max(edges) > MAX_EDGE:
        raise SourceError(f"image_size is {max(edges):,} pixels (limit: {MAX_EDGE:,})")
    return edges
