"""A model out of weights from elsewhere: recognised, renamed, checked tensor by tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runtime.preprocess import Preprocess
from vit.config import SIZES, ConfigError, ViTConfig
from vit.model import ViT
from vit.pretrained.documents import SourceError, labels_of, read_json
from vit.pretrained.files import find_weights, read_weights
from vit.pretrained.formats import GOOGLE, HUGGING_FACE, Format, Tensors, recognise
from vit.pretrained.preprocessing import View, view_of

__all__ = ["ImportedModel", "SourceError", "load_model", "read_source"]

LISTED = 8  # names shown of each kind of misfit
HINTS = (
    (r"dist", "a distilled DeiT classifies with two tokens; take the one without distillation"),
    (r"reg", "register tokens are not part of this model; take the one without registers"),
    (r"fc_norm", "it averages the patches instead of reading the class token, which this model does not"),
    (r"swiglu|weights_in|w12", "a gated MLP is not part of this model"),
    (r"relative_position|rope", "its positions are not the learned absolute ones of this model"),
)
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class ImportedModel:
    """A model from elsewhere, and what could be learned about its use."""

    model: ViT  # in evaluation mode
    preprocess: Preprocess
    labels: tuple[str, ...]
    format: str
    assumed: tuple[str, ...]  # what the source did not say, a sentence each


def read_source(source: Path | str) -> ImportedModel:
    """Read a folder or file of weights; the format is recognised from the names of the tensors.

    Raises:
        SourceError: for a file that cannot be read, a format that is not known, and for tensors that are
            missing, left over or misshapen, listing them.
    """
    file = find_weights(Path(source))
    folder = file.parent if Path(source).is_dir() else None
    tensors = read_weights(file)
    form = recognise(tensors)
    if form is None:
        some = ", ".join(sorted(tensors)[:3]) or "no tensors"
        known = "Hugging Face, timm, torchvision or Google's .npz"
        raise SourceError(f"{file}: expected the tensors of a ViT of {known}, found {some}, …")
    described = read_json(folder / "config.json") if folder else {}
    view = view_of(form, described, read_json(folder / "preprocessor_config.json") if folder else {}, file)
    renamed, unknown = form.rename(tensors)
    renamed = with_head(with_biases(renamed))
    try:
        config, assumed = config_of(form, renamed, heads_in(tensors) | described, view)
    except (ConfigError, KeyError, IndexError) as error:
        unfit = misfit(file, [], unknown, [])
        raise SourceError(f"{file}: the tensors describe no ViT ({error}){unfit and '; ' + unfit}") from error
    model = loaded(file, config, renamed, unknown)
    labels, guessed = labels_of(described, config.classes)
    preprocess = replace(view.preprocess, size=config.image_size)
    return ImportedModel(model, preprocess, labels, form.name, (*view.assumed, *assumed, *guessed))


def load_model(source: Path | str) -> ViT:
    """Return the model in a folder or file of Hugging Face, timm, torchvision or Google, in evaluation mode.

    Raises:
        SourceError: for a file that cannot be read, and tensors that are missing, left over or misshapen.
    """
    return read_source(source).model


def with_biases(tensors: Tensors) -> Tensors:
    """Zero biases where query, key and value have none at all (`qkv_bias=False`)."""
    weights = [name for name in tensors if re.search(r"attention\.(query|key|value)\.weight$", name)]
    biases = {name.replace(".weight", ".bias"): len(tensors[name]) for name in weights}
    if any(name in tensors for name in biases):
        return tensors
    return tensors | {name: torch.zeros(length) for name, length in biases.items()}


def with_head(tensors: Tensors) -> Tensors:
    """The tanh layer of a pre-training head and the classifier behind it as one head."""
    if "pre_logits.weight" not in tensors:
        return tensors
    stacked = {
        name: value for name, value in tensors.items() if not name.startswith(("pre_logits.", "head."))
    }
    for part in ("weight", "bias"):
        stacked[f"head.0.{part}"] = tensors[f"pre_logits.{part}"]
        if f"head.{part}" in tensors:
            stacked[f"head.2.{part}"] = tensors[f"head.{part}"]
    return stacked


def config_of(
    form: Format, tensors: Tensors, described: Mapping[str, Any], view: View
) -> tuple[ViTConfig, list[str]]:
    """The shape of the model, from its tensors; the rest from what the source says of itself."""
    width, _, patch_size, _ = tensors["patch_embedding.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    rows = math.isqrt(tensors["position"].shape[1] - 1)
    image_size = (rows * patch_size, rows * patch_size)
    if rows * rows != tensors["position"].shape[1] - 1:  # not square: the source must say
        image_size = image_size_of(described)
    head = next((name for name in ("head.2.weight", "head.weight") if name in tensors), None)
    heads, assumed = heads_of(described, width, depth)
    epsilon = {HUGGING_FACE.name: described.get("layer_norm_eps", 1e-12)}.get(form.name, 1e-6)
    activation = "gelu_tanh" if form is GOOGLE else described.get("hidden_act", "gelu")
    if activation not in (*ACTIVATIONS, *ACTIVATIONS.values()):
        raise ConfigError(f"expected the activation gelu, found {activation!r}")
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        classes=0 if head is None else tensors[head].shape[0],
        representation=tensors["head.0.weight"].shape[0] if head == "head.2.weight" else None,
        layer_scale="blocks.0.scale1.factor" in tensors,
        norm_epsilon=float(epsilon),
        activation=ACTIVATIONS.get(activation, activation),
        mean=view.mean,
        std=view.std,
    )
    return config, assumed


def heads_in(tensors: Tensors) -> dict[str, int]:
    """The number of heads where a tensor tells it: Flax's kernels are `[in, heads, features]`."""
    shapes = [value.shape for name, value in tensors.items() if name.endswith("/query/kernel")]
    return {"num_attention_heads": shapes[0][1]} if shapes and len(shapes[0]) == 3 else {}


def heads_of(described: Mapping[str, Any], width: int, depth: int) -> tuple[int, list[str]]:
    """The number of attention heads, which mostly no tensor's shape tells."""
    if "num_attention_heads" in described:
        return int(described["num_attention_heads"]), []
    same = [size.heads for size in SIZES.values() if (size.width, size.depth) == (width, depth)]
    heads = same[0] if same else max(width // 64, 1)
    return heads, [] if same else [f"{heads} attention heads of {width // heads} features"]


def image_size_of(described: Mapping[str, Any]) -> tuple[int, int]:
    size = described.get("image_size") or (described.get("pretrained_cfg") or {}).get("input_size", [])[-2:]
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ConfigError("the positions are not a square grid, and no config.json gives image_size")


def loaded(file: Path, config: ViTConfig, tensors: Tensors, unknown: list[str]) -> ViT:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in ViT(config).state_dict().items()}
    missing = sorted(set(shapes) - set(tensors))
    left_over = sorted([*unknown, *(set(tensors) - set(shapes))])
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if unfit := misfit(file, missing, left_over, misshapen):
        raise SourceError(f"{file}: {unfit}")
    model = ViT(config)
    model.load_state_dict(tensors)
    return model.eval()


def misfit(file: Path, missing: list[str], left_over: list[str], misshapen: list[str]) -> str:
    """What does not fit, listed, with a hint where the reason is known; empty when all fits."""
    kinds = (("missing", missing), ("left over", left_over), ("misshapen", misshapen))
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{', …' * (len(names) > LISTED)}"
        for kind, names in kinds
        if names
    ]
    hints = [hint for pattern, hint in HINTS if any(re.search(pattern, name) for name in left_over)]
    return "; ".join([*parts, *hints]) and "tensors do not fit: " + "; ".join([*parts, *hints])


def named_labels(found: ImportedModel, file: Path) -> ImportedModel:
    """The same model with the labels of a file, one a line."""
    try:
        labels = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: cannot be read as labels ({error})") from error
    if len(labels) != found.model.config.classes:
        raise SourceError(f"{file}: has {len(labels)} labels, the model {found.model.config.classes} classes")
    assumed = tuple(sentence for sentence in found.assumed if "--labels" not in sentence)
    return replace(found, labels=labels, assumed=assumed)
