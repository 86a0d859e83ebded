"""From a source's renamed tensors to those of the model here: what differs becomes an option of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vit.config import ConfigError
from vit.pretrained.config import choose_patch_grid
from vit.pretrained.description import Description, SourceError, check_pooling, list_blocks, parse_number
from vit.pretrained.formats import CLIP, Format, Tensors

# Layers of masked and of contrastive pre-training (MAE, SimMIM, DINO, iBOT, DINOv2, MoCo): no part of the
# model that gives features.
PRETRAINING = re.compile(
    r"(?:decoder\w*|predictor|projector|(?:visual_)?projection(?:_head)?|prototypes?|queue\w*|"
    r"(?:\w+_)?mask_token|(?:dino|ibot|koleo|mim)_?\w*|head\.(?:mlp|last_layer))(?:\..*)?"
)
CONTRASTIVE_HEAD = re.compile(r"heads?\.\d+\..*")  # MoCo's and SimCLR's, beside a predictor or a projector
MOST_BIASED = 64 * 64  # patches with a bias for each pair of them, whose number is squared
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
LINEAR = ("query", "key", "value", "proj", "fc1", "gate", "fc2", "head", "pre_logits", "head_distillation")
TOKENS = ("class_token", "distillation", "registers")  # in the order of their positions


def convert_tensors(
    form: Format, tensors: Tensors, description: Description
) -> tuple[Tensors, dict[str, Any]]:
    """Convert what `Format.rename` gives: the tensors of the model here, and the fields of `ViTConfig`.

    Raises a `ConfigError` where tensors are missing or of other shapes than a ViT's, or the grid is in doubt.
    """
    tensors = dict(tensors)
    if tensors["patch_embedding.weight"].ndim != 4:
        raise ConfigError("its patches are cut before the model (NaFlex), which this model does not know")
    fields: dict[str, Any] = {
        **_choose_pooling(form, tensors, description),
        "pre_norm": "pre_norm.weight" in tensors,
        "qk_norm": "blocks.0.attention.query_norm.weight" in tensors,
        "gated": "blocks.0.mlp.gate.weight" in tensors,
    }
    _convert_pooling(tensors, fields)
    _convert_positions(tensors, fields, description)
    fields["attention_bias"] = "blocks.0.attention.bias" in tensors
    if "pre_logits.weight" in tensors:  # the head stands behind a layer with tanh
        for part in ("weight", "bias"):
            if f"head.{part}" in tensors:
                tensors[f"head.2.{part}"] = tensors.pop(f"head.{part}")
            tensors[f"head.0.{part}"] = _take(tensors, f"pre_logits.{part}")
    # A linear layer may have no bias: the key's in BEiT, the patches' in CLIP, qkv_bias=False.
    zeros = {
        name.removesuffix("weight") + "bias": torch.zeros(len(value))
        for name, value in tensors.items()
        if name.endswith(".weight") and name.split(".")[-2] in (*LINEAR, "patch_embedding")
    }
    return zeros | tensors, fields


def check_dimensions(tensors: Tensors) -> None:
    """Refuse tensors that the conversion cannot use; shapes are compared with the model's after it."""
    for name in ("patch_embedding.weight", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise ConfigError(f"it lacks {name!r}")
    width = tensors["patch_embedding.weight"].shape[:1]
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        matrix = part == "bias_table" or (part == "weight" and layer.split(".")[-1] in LINEAR)
        flat = part in ("weight", "bias", "factor") and layer != "patch_embedding"
        if value.ndim != (2 if matrix else 1 if flat else max(value.ndim, 1)):
            raise ConfigError(f"{name} has {value.ndim} dimensions, expected {2 if matrix else 1}")
        if name in (*TOKENS, "pool.probe") and value.shape[-1:] != width:
            raise ConfigError(f"{name} has the shape {list(value.shape)}, expected {list(width)} features")


def _take(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise ConfigError(f"it lacks {name!r}")
    return tensors.pop(name)


def convert_gray(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Let a model of gray images take color: the first layer computes the luminance, as Pillow does."""
    patches = tensors["patch_embedding.weight"]
    channels = 3 if patches.ndim != 4 else patches.shape[1]
    if channels == 3:
        return tensors, []
    if channels != 1:
        raise SourceError(
            f"it takes images of {channels} channels, and this project's have three (red, green, blue); "
            "import a model of RGB images"
        )
    color = patches * torch.tensor(LUMINANCE)[:, None, None]
    note = "the model takes gray images: color is turned into its luminance (0.299 R + 0.587 G + 0.114 B)"
    return tensors | {"patch_embedding.weight": color}, [note]


# --- The head among tensors that no rule knows ---


def choose_head(tensors: Tensors, unknown: Tensors) -> tuple[Tensors, Tensors, list[str]]:
    """Find a head among the tensors that no rule knows: `heads = Sequential(Dropout, Linear)`, `linear`.

    Returns the tensors with the head, those still unknown, and a sentence for what was left out or chosen.
    Raises a `ConfigError` for a head of several layers, whose activation no tensor tells.
    """
    unknown, notes = _drop_pretraining(tensors, unknown)
    layers = {name.rpartition(".")[0] for name in unknown}
    weights = [value for name, value in unknown.items() if name.endswith(".weight") and value.ndim == 2]
    if "head.weight" in tensors or not layers or len(weights) != len(layers):
        return tensors, unknown, notes
    if len(layers) > 1:
        if all(re.match(r"(?:.*\.)?(?:heads?|classifier|fc|mlp_head)\.", name) for name in unknown):
            raise ConfigError(
                f"its head has several layers ({', '.join(sorted(layers))}), whose activation no tensor tells"
            )
        return tensors, unknown, notes
    (layer,), width = layers, len(tensors["patch_embedding.weight"])
    if weights[0].shape[1] not in (width, 2 * width):
        return tensors, unknown, notes
    if not re.search(r"head|classifier|\bfc", layer):
        notes.append(f"the linear layer {layer!r} was taken as the head")
    head = {f"head.{name.rpartition('.')[2]}": value for name, value in unknown.items()}
    return tensors | head, {}, notes


def _drop_pretraining(tensors: Tensors, unknown: Tensors) -> tuple[Tensors, list[str]]:
    dropped = [name for name in unknown if PRETRAINING.fullmatch(name)]
    if any(name.startswith(("predictor.", "projector.")) for name in dropped):
        dropped += [name for name in unknown if CONTRASTIVE_HEAD.fullmatch(name)]
    if not dropped:
        return unknown, []
    first = ", ".join(sorted({name.partition(".")[0] for name in dropped}))
    kept = {name: value for name, value in unknown.items() if name not in dropped}
    ends = "" if "head.weight" in tensors else "; what is left gives an embedding"
    return kept, [f"{len(dropped)} tensors of the pre-training were left out ({first}){ends}"]


# --- Pooling and head ---


def _choose_pooling(form: Format, tensors: Tensors, description: Description) -> dict[str, Any]:
    """Return the pooling and the last norm, from the tensors after the last block and the description."""
    width = len(tensors["patch_embedding.weight"])
    head, has_class = tensors.get("head.weight"), "class_token" in tensors
    pooling, norm = "class" if has_class else "mean", "before"
    if "head_distillation.weight" in tensors:
        pooling = "class_and_last"
    elif form is CLIP and head is not None:  # transformers' CLIP and SigLIP classifiers read the mean
        pooling, norm = "mean", "none" if has_class else "before"
    elif "pool.probe" in tensors:
        pooling = "attention"
    elif "fc_norm.weight" in tensors:
        pooling, norm = "mean", "after"
    elif head is not None and head.shape[1] == 2 * width and "pre_logits.weight" not in tensors:
        pooling = "class_and_mean"
    elif description.first("global_pool") in ("avg", True):
        pooling = "mean"
    pooling, norm = check_pooling(description, tensors, (pooling, norm))
    return {"pooling": pooling, "final_norm": norm, "class_token": has_class}


def _convert_pooling(tensors: Tensors, fields: Mapping[str, Any]) -> None:
    """Convert the tensors behind the last block, in place: one norm, one head, a pool's projected query."""
    after = fields["final_norm"] == "after" or fields["pooling"] == "class"
    if after and "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        for part in ("weight", "bias"):
            tensors[f"norm.{part}"] = _take(tensors, f"fc_norm.{part}")
    # transformers stores some that its classifier does not read.
    unread = ("norm.", "pool.") if fields["final_norm"] == "none" else ("pool.",)
    if fields["final_norm"] == "none" or (fields["pooling"] == "mean" and "pool.probe" in tensors):
        for name in [name for name in tensors if name.startswith(unread)]:
            del tensors[name]
    if fields["pooling"] == "class_and_last":  # logits = (a(x) + b(y)) / 2 is one linear layer of (x, y)
        for part in ("weight", "bias"):
            first, second = _take(tensors, f"head.{part}"), _take(tensors, f"head_distillation.{part}")
            if first.shape != second.shape:
                raise ConfigError(f"head.{part} and head_distillation.{part} have different shapes")
            both = torch.cat([first, second], dim=1) if first.ndim > 1 else first + second
            tensors[f"head.{part}"] = both / 2
    if "pool.probe" in tensors:
        probe, weight = _take(tensors, "pool.probe"), _take(tensors, "pool.query.weight")
        bias = tensors.pop("pool.query.bias", torch.zeros(len(weight)))
        if probe.shape[-1] != weight.shape[1] or len(bias) != len(weight):
            raise ConfigError(
                f"pool.query.weight has the shape {list(weight.shape)}, which fits no probe or bias"
            )
        tensors["pool.query"] = probe @ weight.T + bias


# --- Positions ---


def _convert_positions(tensors: Tensors, fields: dict[str, Any], description: Description) -> None:
    """Convert to position embeddings of class token and patches, in place; other tokens get theirs added."""
    width, _, _, patch = tensors["patch_embedding.weight"].shape
    names = [name for name in TOKENS if name in tensors]
    for name in names:
        tensors[name] = tensors[name].reshape(1, -1, width)
    position = tensors.get("position")
    position = None if position is None else position.reshape(1, -1, position.shape[-1])
    count = None if position is None else position.shape[1]
    prefix = sum(tensors[name].shape[1] for name in names)
    rows, columns, before = choose_patch_grid(count, prefix, description, patch)
    if position is None:
        position = torch.zeros(1, rows * columns, width)
    elif position.shape[-1] != width and names not in ([], ["class_token"]):
        raise ConfigError(f"position has {position.shape[-1]} features, expected {width}")
    start, ahead, patches = 0, position[:, :before], position[:, before:]
    for name in names:
        size = tensors[name].shape[1]
        part = ahead[:, start : start + size]
        if name != "class_token" and part.shape[1]:
            tensors[name] = tensors[name] + part
        start += size
    if fields["class_token"]:
        first = ahead[:, :1] if before else torch.zeros(1, 1, position.shape[-1])
        patches = torch.cat([first, patches], dim=1)
    tensors["position"] = patches
    last = [tensors.pop(name) for name in ("registers", "distillation") if name in tensors]
    if last:
        tensors["registers"] = torch.cat(last, dim=1)
    fields["registers"] = sum(each.shape[1] for each in last)
    fields["image_size"] = rows * patch, columns * patch
    _convert_attention(tensors, fields, description, (rows, columns), absolute=count is not None)


def _convert_attention(
    tensors: Tensors,
    fields: dict[str, Any],
    description: Description,
    grid: tuple[int, int],
    *,
    absolute: bool,
) -> None:
    """Add what turns queries and keys, or the biases between tokens, to each attention, in place."""
    fields["rotary"] = description.architecture == "dinov3_vit"
    if fields["rotary"]:
        angles = rotary_angles(len(tensors["patch_embedding.weight"]), fields, description, grid)
        tensors |= {f"blocks.{block}.attention.turn": angles for block in list_blocks(tensors)}
    else:
        _refuse_rotary(tensors, description, absolute=absolute)
    shared = tensors.pop("bias_table", None)
    for attention in (f"blocks.{block}.attention" for block in list_blocks(tensors)):
        if (table := tensors.pop(f"{attention}.bias_table", shared)) is not None:
            tensors[f"{attention}.bias"] = expand_bias_table(table, grid)


def rotary_angles(
    width: int, fields: Mapping[str, Any], description: Description, grid: tuple[int, int]
) -> Tensor:
    """Return cosines and sines of DINOv3's angles, `[2, tokens, width / heads]`.

    An angle is a patch's center in -1 to 1, times 2π over periods that grow to rope_theta.
    """
    theta = description.first("rope_theta")
    if theta is None and isinstance(parameters := description.first("rope_parameters"), Mapping):
        theta = parameters.get("rope_theta")
    heads = description.read_heads() or 1
    head = width // heads
    if width % heads or head % 4:
        raise ConfigError(f"its width {width} is no multiple of 4 features in each of {heads} heads")
    theta = 100.0 if theta is None else parse_number(theta, "rope_theta", above=0)
    periods = theta ** torch.arange(0, 1, 4 / head, dtype=torch.float32)
    down, across = ((torch.arange(0.5, size) / size) * 2 - 1 for size in grid)
    centers = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)  # (patches, 2)
    angles = (2 * torch.pi * centers[:, :, None] / periods).flatten(1).tile(2)  # (patches, d)
    turn = torch.stack([angles.cos(), angles.sin()])
    none = torch.stack([torch.ones(1, head), torch.zeros(1, head)])
    parts = [none.expand(-1, int(fields["class_token"]), -1), turn, none.expand(-1, fields["registers"], -1)]
    return torch.cat(parts, dim=1).contiguous()


def _refuse_rotary(tensors: Tensors, description: Description, *, absolute: bool) -> None:
    """Refuse a model that turns its queries and keys without a tensor for it: EVA-02, timm's DINOv3."""
    relative = any(name.endswith("bias_table") for name in tensors)
    named = re.search(r"rope|eva02|dinov3|vit_pe|naflex", description.architecture)
    like_eva = "blocks.0.attention.query.bias" in tensors and "blocks.0.attention.key.bias" not in tensors
    known = re.match(r"beit|eva_|data2vec", description.architecture)
    without = description.model_type in ("beit", "data2vec-vision")  # may have no positions at all
    if named or not (absolute or relative or without) or (like_eva and not relative and not known):
        raise ConfigError("its positions are rotary (RoPE), in a way that the tensors do not tell")


def expand_bias_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Expand BEiT's table of one number per head and relative place to `[1, heads, tokens, tokens]`.

    `table` is `[(2 rows - 1)(2 columns - 1) + 3, heads]`; the last three are the class token's.
    """
    rows, columns = grid
    if len(table) != (2 * rows - 1) * (2 * columns - 1) + 3:
        raise ConfigError(f"{len(table)} relative positions do not belong to {rows} x {columns} patches")
    if rows * columns > MOST_BIASED:
        raise ConfigError(
            f"relative positions of {rows} x {columns} patches (limit: {MOST_BIASED:,} patches)"
        )
    down, across = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T  # (patches) each
    index = torch.zeros(rows * columns + 1, rows * columns + 1, dtype=torch.long)
    below, beside = down[:, None] - down + rows - 1, across[:, None] - across + columns - 1
    index[1:, 1:] = below * (2 * columns - 1) + beside
    index[0, :], index[:, 0], index[0, 0] = len(table) - 3, len(table) - 2, len(table) - 1
    return table[index].permute(2, 0, 1)[None].contiguous()
