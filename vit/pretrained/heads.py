"""The head of an imported model: one that another took the place of, and those that only pre-training had."""

from __future__ import annotations

import re

from vit.config import ConfigError
from vit.pretrained.fused import Tensors

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
