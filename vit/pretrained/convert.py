"""The head of an imported model: one that another took the place of, and those that only pre-training had."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from vit.config import ConfigError
from vit.pretrained.claims import pooling_of
from vit.pretrained.config import Described, grid_of
from vit.pretrained.formats import CLIP, Format, Tensors
from vit.pretrained.processors import number

# --- The head of an imported model: one that another took the place of, and those that only pre-trainin---


# Layers of masked and of contrastive pre-training (MAE, SimMIM, DINO, iBOT, DINOv2, MoCo): no part of the
# model that gives features.
PRETRAINING = re.compile(
    r"(?:decoder\w*|predictor|projector|(?:visual_)?projection(?:_head)?|prototypes?|queue\w*|"
    r"(?:\w+_)?mask_token|(?:dino|ibot|koleo|mim)_?\w*|head\.(?:mlp|last_layer))(?:\..*)?"
)
CONTRASTIVE_HEAD = re.compile(r"heads?\.\d+\..*")  # MoCo's and SimCLR's, beside a predictor or a projector


def settled_head(tensors: Tensors, unknown: Tensors) -> tuple[Tensors, Tensors, list[str]]:
    """Find a head among the tensors that no rule knows: `heads = Sequential(Dropout, Linear)`, `linear`.

    Args:
        tensors: the tensors by their names here.
        unknown: those that no rule knows, by their own names.

    Returns:
        the tensors with the head, those still unknown, and a sentence for what was left out or chosen.

    Raises:
        ConfigError: for a head of several layers, whose activation no tensor tells.
    """
    unknown, notes = _without_pretraining(tensors, unknown)
    layers = {name.rpartition(".")[0] for name in unknown}
    weights = [value for name, value in unknown.items() if name.endswith(".weight") and value.ndim == 2]
    if "head.weight" in tensors or not layers or len(weights) != len(layers):
        return tensors, unknown, notes
    if len(layers) > 1:
        named = all(re.match(r"(?:.*\.)?(?:heads?|classifier|fc|mlp_head)\.", name) for name in unknown)
        if named:
            raise ConfigError(
                f"its head has several layers ({', '.join(sorted(layers))}), whose activation no tensor tells"
            )
        return tensors, unknown, notes
    (layer,), width = layers, tensors["patch_embedding.weight"].shape[0]
    if weights[0].shape[1] not in (width, 2 * width):
        return tensors, unknown, notes
    if not re.search(r"head|classifier|\bfc", layer):
        notes.append(f"the linear layer {layer!r} was taken as the head")
    head = {f"head.{name.rpartition('.')[2]}": value for name, value in unknown.items()}
    return tensors | head, {}, notes


def _without_pretraining(tensors: Tensors, unknown: Tensors) -> tuple[Tensors, list[str]]:
    left_out = [name for name in unknown if PRETRAINING.fullmatch(name)]
    if any(name.startswith(("predictor.", "projector.")) for name in left_out):
        left_out += [name for name in unknown if CONTRASTIVE_HEAD.fullmatch(name)]
    if not left_out:
        return unknown, []
    first = ", ".join(sorted({name.partition(".")[0] for name in left_out}))
    kept = {name: value for name, value in unknown.items() if name not in left_out}
    ends = "" if "head.weight" in tensors else "; what is left gives an embedding"
    return kept, [f"{len(left_out)} tensors of the pre-training were left out ({first}){ends}"]


# --- From a source's tensors, renamed, to those of the model here: what differs becomes an option of th---


MOST_SPREAD = 64 * 64  # patches with a bias for each pair of them, which takes their number squared
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def arranged(form: Format, tensors: Tensors, described: Described) -> tuple[Tensors, dict[str, Any]]:
    """The tensors by their names here, and the fields of `ViTConfig` that they imply.

    Raises:
        ConfigError: where the grid of patches cannot be told, or the patches are no convolution.
    """
    tensors = {name: value for name, value in tensors.items() if value.numel()}  # DINOv3 stores 0 registers
    if tensors["patch_embedding.weight"].ndim != 4:
        raise ConfigError("its patches are cut before the model (NaFlex), which this model does not know")
    extra = pooling_fields(form, tensors, described)
    pooled(tensors, extra)
    placed(tensors, extra, described)
    extra["pre_norm"] = "pre_norm.weight" in tensors
    extra["qk_norm"] = "blocks.0.attention.query_norm.weight" in tensors
    extra["gated"] = "blocks.0.mlp.gate.weight" in tensors
    extra["attention_bias"] = "blocks.0.attention.bias" in tensors
    with_head(tensors)
    return with_biases(tensors), extra


def in_color(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """Let a model of gray images take color: the luminance that Pillow computes is part of the first layer.

    Raises:
        ConfigError: for images of any other number of channels than one or three.
    """
    patches = tensors["patch_embedding.weight"]
    channels = 3 if patches.ndim != 4 else patches.shape[1]
    if channels == 3:
        return tensors, []
    if channels != 1:
        raise ConfigError(
            f"it takes images of {channels} channels, and this project's have three (red, green, blue); "
            "import a model of RGB images"
        )
    color = patches * torch.tensor(LUMINANCE)[:, None, None]
    note = "the model takes gray images: color is turned into its luminance (0.299 R + 0.587 G + 0.114 B)"
    return tensors | {"patch_embedding.weight": color}, [note]


def pooling_fields(form: Format, tensors: Tensors, described: Described) -> dict[str, Any]:
    """Return the pooling and the last norm, from the tensors after the last block and the description."""
    width = tensors["patch_embedding.weight"].shape[0]
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
    elif described.first("global_pool") in ("avg", True):
        pooling = "mean"
    pooling, norm = pooling_of(described.facts, tensors, (pooling, norm))
    return {"pooling": pooling, "final_norm": norm, "class_token": has_class}


def pooled(tensors: Tensors, extra: dict[str, Any]) -> None:
    """The tensors behind the last block: one norm, one head, and the pool's query already projected."""
    after = extra["final_norm"] == "after" or extra["pooling"] == "class"
    if after and "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        for part in ("weight", "bias"):
            tensors[f"norm.{part}"] = tensors.pop(f"fc_norm.{part}")
    if extra["final_norm"] == "none" or (extra["pooling"] == "mean" and "pool.probe" in tensors):
        dropped = ("norm.", "pool.") if extra["final_norm"] == "none" else ("pool.",)
        for name in [name for name in tensors if name.startswith(dropped)]:
            del tensors[name]  # transformers stores them, and its classifier does not read them
    if extra["pooling"] == "class_and_last":  # logits = (a(x) + b(y)) / 2 is one linear layer of (x, y)
        both = tensors["head.weight"], tensors.pop("head_distillation.weight")
        tensors["head.weight"] = torch.cat(both, dim=1) / 2
        tensors["head.bias"] = (tensors["head.bias"] + tensors.pop("head_distillation.bias")) / 2
    if "pool.probe" in tensors:
        probe, weight = tensors.pop("pool.probe"), tensors.pop("pool.query.weight")
        tensors["pool.query"] = probe @ weight.T + tensors.pop("pool.query.bias", torch.zeros(len(weight)))


def placed(tensors: Tensors, extra: dict[str, Any], described: Described) -> None:
    """Position embeddings for class token and patches; what else has one gets it added."""
    patch, width = tensors["patch_embedding.weight"].shape[-1], tensors["patch_embedding.weight"].shape[0]
    names = [name for name in ("class_token", "distillation", "registers") if name in tensors]
    for name in names:
        tensors[name] = tensors[name].reshape(1, -1, width)
    prefix = sum(tensors[name].shape[1] for name in names)
    position = tensors.get("position")
    position = None if position is None else position.reshape(1, -1, position.shape[-1])
    count = None if position is None else position.shape[1]
    rows, columns, before = grid_of(count, prefix, described, patch)
    if position is None:
        position = torch.zeros(1, rows * columns, width)
    start, ahead, breadth = 0, position[:, :before], position.shape[-1]
    for name in names:
        size = tensors[name].shape[1]
        part = ahead[:, start : start + size]
        if name != "class_token" and part.shape[1]:
            tensors[name] = tensors[name] + part
        start += size
    if extra["class_token"]:
        first = ahead[:, :1] if before else torch.zeros(1, 1, breadth)
        tensors["position"] = torch.cat([first, position[:, before:]], dim=1)
    else:
        tensors["position"] = position[:, before:]
    last = [tensors.pop(name) for name in ("registers", "distillation") if name in tensors]
    if last:
        tensors["registers"] = torch.cat(last, dim=1)
    extra["registers"] = sum(each.shape[1] for each in last)
    extra["image_size"] = rows * patch, columns * patch
    extra["rotary"] = rotated(tensors, extra, described, (rows, columns), absolute=count is not None)
    biased(tensors, (rows, columns))


def rotated(
    tensors: Tensors, extra: dict[str, Any], described: Described, grid: tuple[int, int], *, absolute: bool
) -> bool:
    """DINOv3's angles: the patches' centers, in -1 to 1, times 2π over periods that grow to rope_theta."""
    if described.architecture != "dinov3_vit":
        refuse_rotary(tensors, described, absolute=absolute)
        return False
    theta = described.first("rope_theta")
    if theta is None and isinstance(parameters := described.first("rope_parameters"), dict):
        theta = parameters.get("rope_theta")
    head = tensors["patch_embedding.weight"].shape[0] // (described.said_heads() or 1)
    theta = 100.0 if theta is None else number(theta, "rope_theta", above=0)
    periods = theta ** torch.arange(0, 1, 4 / head, dtype=torch.float32)
    down, across = ((torch.arange(0.5, size) / size) * 2 - 1 for size in grid)
    centers = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)  # (patches, 2)
    angles = (2 * torch.pi * centers[:, :, None] / periods).flatten(1).tile(2)  # (patches, d)
    turn = torch.stack([angles.cos(), angles.sin()])
    none = torch.stack([torch.ones(1, head), torch.zeros(1, head)])
    parts = [none.expand(-1, int(extra["class_token"]), -1), turn, none.expand(-1, extra["registers"], -1)]
    for block in blocks_of(tensors):
        tensors[f"blocks.{block}.attention.turn"] = torch.cat(parts, dim=1).contiguous()
    return True


def refuse_rotary(tensors: Tensors, described: Described, *, absolute: bool) -> None:
    """Refuse what turns its queries and keys without a tensor that says so: EVA-02, timm's DINOv3.

    Raises:
        ConfigError: when the name says it, there are no positions at all, or only EVA writes such biases.
    """
    relative = any(name.endswith("bias_table") for name in tensors)
    named = re.search(r"rope|eva02|dinov3|vit_pe|naflex", described.architecture)
    like_eva = "blocks.0.attention.query.bias" in tensors and "blocks.0.attention.key.bias" not in tensors
    known = re.match(r"beit|eva_|data2vec", described.architecture)
    without = described.model_type in ("beit", "data2vec-vision")  # may have no positions at all
    if named or not (absolute or relative or without) or (like_eva and not relative and not known):
        raise ConfigError("its positions are rotary (RoPE), in a way that the tensors do not tell")


def biased(tensors: Tensors, grid: tuple[int, int]) -> None:
    """BEiT's table of one number per head and relative place, spread out to all pairs of tokens."""
    shared = tensors.pop("bias_table", None)
    for block in blocks_of(tensors):
        table = tensors.pop(f"blocks.{block}.attention.bias_table", shared)
        if table is not None:
            tensors[f"blocks.{block}.attention.bias"] = spread(table, grid)


def spread(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[(2 rows - 1)(2 columns - 1) + 3, heads]` to `[1, heads, T, T]`; the last three: the class token's."""
    rows, columns = grid
    if table.shape[0] != (2 * rows - 1) * (2 * columns - 1) + 3:
        raise ConfigError(f"{table.shape[0]} relative positions do not belong to {rows} x {columns} patches")
    if rows * columns > MOST_SPREAD:
        raise ConfigError(
            f"relative positions of {rows} x {columns} patches (limit: {MOST_SPREAD:,} patches)"
        )
    down, across = (
        each.flatten() for each in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    index = torch.zeros(rows * columns + 1, rows * columns + 1, dtype=torch.long)
    index[1:, 1:] = (
        (down[:, None] - down + rows - 1) * (2 * columns - 1) + across[:, None] - across + columns - 1
    )
    index[0, :], index[:, 0], index[0, 0] = len(table) - 3, len(table) - 2, len(table) - 1
    return table[index].permute(2, 0, 1)[None].contiguous()


def blocks_of(tensors: Tensors) -> list[str]:
    return sorted({name.split(".")[1] for name in tensors if name.startswith("blocks.")}, key=int)


def with_head(tensors: Tensors) -> None:
    """Stack the head behind its tanh layer, where there is one."""
    if "pre_logits.weight" in tensors:
        for part in ("weight", "bias"):
            tensors[f"head.0.{part}"] = tensors.pop(f"pre_logits.{part}")
            if f"head.{part}" in tensors:
                tensors[f"head.2.{part}"] = tensors.pop(f"head.{part}")


def with_biases(tensors: Tensors) -> Tensors:
    """Zeros where a linear layer has no bias: the key's in BEiT, the patches' in CLIP, qkv_bias=False."""
    layers = ("query", "key", "value", "proj", "fc1", "gate", "fc2", "patch_embedding", "head")
    zeros = {
        name.removesuffix("weight") + "bias": torch.zeros(value.shape[0])
        for name, value in tensors.items()
        if name.endswith(".weight") and name.split(".")[-2] in layers
    }
    return zeros | tensors
