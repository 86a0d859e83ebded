"""The number of attention heads that trained weights show, where no shape and no description tells it.

Training scales each head as a whole: the rows of its value weights and the columns of its output projection
have norms of their own. Split at the true boundaries, the variance of the logarithms of these norms between
the heads is largest over the variance within them (the F ratio of an analysis of variance).

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
from dataclasses import dataclass, field
from typing import Any

import torch

from vit.config import SIZES, ConfigError, ViTConfig
from vit.pretrained.claims import refuse_claims
from vit.pretrained.documents import ONE_CLASS, SourceError, refuse_other_scores
from vit.pretrained.formats import CLIP, GOOGLE, HUGGING_FACE, TIMM, Format, Tensors
from vit.pretrained.preprocessing import View
from vit.pretrained.processors import number, whole

# --- The number of attention heads that trained weights show, where no shape and no description tells i---


CLEAR = 5.0  # the smallest F ratio that says something
AHEAD = 1.5  # and how far it is ahead of that of every other number of heads
NARROWEST = 8  # features of a head


def shown_heads(tensors: Tensors) -> int | None:
    """Return the number of heads that the weights show; None where they show none, as untrained ones do.

    Args:
        tensors: the weights, with the names of `vit.model`.
    """
    ratios = variance_ratios(tensors)
    best = max(ratios, key=lambda heads: ratios[heads], default=None)
    if best is None or ratios[best] < CLEAR:
        return None
    others = (ratio for heads, ratio in ratios.items() if heads != best)
    return best if ratios[best] >= AHEAD * max(others, default=0.0) else None


def variance_ratios(tensors: Tensors) -> dict[int, float]:
    """Return the F ratio of each possible number of heads, the median over all layers."""
    rows = [
        (value if match[1] == "value" else value.T).float().norm(dim=1).clamp_min(1e-12).log()
        for name, value in tensors.items()
        if (match := re.fullmatch(r"blocks\.\d+\.attention\.(value|proj)\.weight", name))
    ]
    if not rows:
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


def doubted(tensors: Tensors, heads: int) -> list[str]:
    """Return a sentence where the weights show another number of heads than the source or the caller says."""
    shown = shown_heads(tensors)
    if shown in (None, heads):
        return []
    return [
        f"WARNING: {heads} attention heads were said, and the weights look like {shown}: a wrong number "
        f"gives wrong answers without an error; compare an answer with that of --heads {shown}"
    ]


# --- Shape of an imported model: from its tensors, and for the rest from the description of the source ---


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
# Architectures of timm whose GELU is the one with tanh; its other SigLIPs have the exact one.
TIMM_TANH = re.compile(
    r"vit_(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip.*|vit_large_patch16_siglip.*_512"
)
# Heads by (width, depth), of timm's and DINOv2's named sizes beside those of `SIZES`.
HEADS: Mapping[tuple[int, int], int] = {(each.width, each.depth): each.heads for each in SIZES.values()} | {
    (256, 14): 4,
    (320, 14): 5,
    (384, 36): 6,
    (512, 12): 8,
    (512, 20): 8,
    (640, 12): 10,
    (1152, 27): 16,
    (1408, 40): 16,
    (1536, 40): 24,
    (1664, 48): 16,
    (4096, 40): 32,
}
MOST_PATCHES = 2**18  # of an image whose positions no tensor holds: 4096 pixels in patches of 8
MAX_EDGE = 4096  # of an image that a model takes, as in runtime.images.preprocess
PATCHES = (8, 14, 16, 32)  # pixels along an edge, of the models in HEADS
# What transformers takes where config.json leaves it out, as the files of its older versions do with what is
# the default of a `vision_config`; by model type.
EPSILON = {"dinov2": 1e-6, "dinov2_with_registers": 1e-6, "vit_msn": 1e-6, "ijepa": 1e-6, "dinov3_vit": 1e-5}
EPSILON |= {"siglip": 1e-6, "siglip2": 1e-6}
VISION_ACTIVATION = {"clip": "quick_gelu", "metaclip_2": "quick_gelu"}
VISION_ACTIVATION |= {"siglip": "gelu_tanh", "siglip2": "gelu_tanh"}
VISION_HEADS = 12  # of all of these


@dataclass(frozen=True)
class Described:
    """Description beside the tensors, in one flat dictionary, and the choices of the caller."""

    facts: Mapping[str, Any]  # of the documents and, where these say nothing, of the training script
    activation: str | None = None
    heads: int | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)  # of the documents alone

    @staticmethod
    def of(
        document: Mapping[str, Any],
        arguments: Mapping[str, Any],
        heads: int | None = None,
        activation: str | None = None,
    ) -> Described:
        """Flatten config.json: `vision_config` (CLIP, SigLIP) and `model_args` (timm) say the same things."""
        stated = dict(document)
        pool = _fields(document.get("pretrained_cfg")).get("global_pool")
        # timm builds the model with it, unless model_args say another one.
        stated |= {} if pool is None else {"global_pool": pool}
        for part in ("vision_config", "model_args"):
            # An outer model_type says "siglip" or "clip"; the inner one may be absent.
            stated |= {k: v for k, v in _fields(document.get(part)).items() if k != "model_type"}
        script = {"architecture": arguments.get("model"), "global_pool": arguments.get("gp")}  # timm's
        script = {name: value for name, value in script.items() if isinstance(value, str)}
        script |= {**arguments, **_fields(arguments.get("model_kwargs"))}
        return Described(script | stated, activation, heads, stated)

    def said_heads(self) -> int | None:
        """The number of attention heads that the caller or the source says.

        Raises:
            SourceError: for what is no whole number from 1.
        """
        said = self.first("num_attention_heads", "num_heads", "heads") if self.heads is None else self.heads
        return None if said is None else whole(said, "the number of attention heads")

    def first(self, *names: str) -> Any:
        """The first of these facts that is there and not null."""
        return next((self.facts[name] for name in names if self.facts.get(name) is not None), None)

    @property
    def architecture(self) -> str:
        return str(self.first("architecture", "arch", "model_type") or "")

    @property
    def model_type(self) -> str:
        """Name of the model in transformers; "clip" for a whole model as for its vision part."""
        return str(self.first("model_type") or "").removesuffix("_vision_model")


def _fields(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, Mapping) else {}


def config_of(
    form: Format, tensors: Tensors, extra: Mapping[str, Any], described: Described, view: View
) -> tuple[ViTConfig, list[str]]:
    """Return the configuration of an imported model, and one sentence per assumption.

    Args:
        form: format of the source.
        tensors: the weights, with the names of `vit.model`.
        extra: options that `arranged` found: image_size, pooling and other differences from the paper.
        described: description of the source.
        view: preprocessing of the source.

    Raises:
        ConfigError: when the shapes describe no ViT, or the source does not tell what no shape does.
    """
    refuse_other_scores(described.facts)
    claims = refuse_claims(described.facts, described.stated, tensors)
    if form is TIMM and extra.get("final_norm") == "after" and described.first("global_pool") is None:
        claims.append("the mean of the patches before the last norm (max and avgmax have the same tensors)")
    width, _, patch_size, _ = tensors["patch_embedding.weight"].shape
    depth = depth_of(tensors)
    head = next((name for name in ("head.2.weight", "head.weight") if name in tensors), None)
    if head is not None and tensors[head].shape[0] == 1:
        raise SourceError(ONE_CLASS)
    heads, assumed = heads_of(tensors, described, width, depth)
    activation, more = activation_of(form, described, gated=bool(extra.get("gated")))
    config = ViTConfig(
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        classes=0 if head is None else tensors[head].shape[0],
        representation=tensors["head.0.weight"].shape[0] if head == "head.2.weight" else None,
        layer_scale="blocks.0.scale1.factor" in tensors,
        norm_epsilon=epsilon_of(form, described),
        activation=activation,
        mean=view.mean,
        std=view.std,
        **extra,
    )
    return config, [*claims, *assumed, *more]


def depth_of(tensors: Tensors) -> int:
    """Number of blocks.

    Raises:
        ConfigError: when they are not numbered from 0.
    """
    numbers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    if numbers != {str(index) for index in range(len(numbers))} or not numbers:
        raise ConfigError(f"its {len(numbers)} blocks are not numbered from 0")
    return len(numbers)


def heads_of(tensors: Tensors, described: Described, width: int, depth: int) -> tuple[int, list[str]]:
    """The number of attention heads, which mostly no tensor's shape tells."""
    if (said := described.said_heads()) is not None:
        return said, []
    if (norm := tensors.get("blocks.0.attention.query_norm.weight")) is not None:
        return width // len(norm), []
    if (bias := tensors.get("blocks.0.attention.bias")) is not None:
        return bias.shape[1], []
    if described.model_type in VISION_ACTIVATION and not width % VISION_HEADS:
        return VISION_HEADS, []
    return known_heads(width, depth, tensors["patch_embedding.weight"].shape[-1], shown_heads(tensors))


def known_heads(width: int, depth: int, patch: int, shown: int | None) -> tuple[int, list[str]]:
    """Return the heads of known models of this shape, and a sentence that says so.

    Raises:
        ConfigError: when no such model is known, or the weights show another number (`shown`).
    """
    model = f"of width {width} and depth {depth}"
    seen = "" if shown is None else f" (its weights look like {shown} heads)"
    if (heads := HEADS.get((width, depth))) is None:
        raise ConfigError(
            f"nothing says how many attention heads it has, and no known model has width {width} and depth "
            f"{depth}; say it with --heads N{seen}"
        )
    if patch not in PATCHES:
        raise ConfigError(
            f"nothing says how many attention heads it has, and no known model {model} has patches of "
            f"{patch} pixels; say it with --heads N{seen}"
        )
    if shown not in (None, heads):
        raise ConfigError(
            f"nothing says how many attention heads it has: known models {model} have {heads}, and its "
            f"weights look like {shown}; say it with --heads N (--heads {shown} or --heads {heads})"
        )
    if shown == heads:
        return heads, [f"{heads} attention heads, as known models {model} have, and as the weights look"]
    return heads, [
        f"{heads} attention heads, as known models {model} have; the weights do not show it, and a wrong "
        "number gives wrong answers without an error: if it has another, say it with --heads N"
    ]


def activation_of(form: Format, described: Described, *, gated: bool) -> tuple[str, list[str]]:
    """The activation of the MLPs, and a sentence where it is assumed."""
    said = described.activation or described.first("hidden_act", "act_layer")
    if gated and described.activation is None and (form is TIMM or "gated" not in str(list(described.facts))):
        return "silu", []  # SwiGLU, whatever hidden_act says: DINOv2's code has it fixed
    if said is None and "quickgelu" in described.architecture:
        said = "quick_gelu"
    if said is None and (form is GOOGLE or TIMM_TANH.fullmatch(described.architecture)):
        return "gelu_tanh", []
    if said is None and form is CLIP:
        said = VISION_ACTIVATION.get(described.model_type)
        return (said, []) if said else ("gelu", ["GELU between the linear layers of the MLPs (--activation)"])
    if said is None:
        usual = form is not TIMM or (described.architecture and "siglip" not in described.architecture)
        return "gelu", [] if usual else ["GELU between the linear layers of the MLPs (--activation)"]
    if str(said) not in ACTIVATIONS:
        known = ", ".join(sorted(set(ACTIVATIONS.values())))
        raise ConfigError(f"expected an activation among {known}, found {said!r}")
    return ACTIVATIONS[str(said)], []


def epsilon_of(form: Format, described: Described) -> float:
    """The number that LayerNorm adds to the variance."""
    said = described.first("layer_norm_eps")
    if said is not None:
        return number(said, "layer_norm_eps", above=0)
    if form in (HUGGING_FACE, CLIP):
        return EPSILON.get(described.model_type, 1e-12 if form is HUGGING_FACE else 1e-5)
    clip = re.match(r"vit_.*clip", described.architecture) and described.first("norm_layer") is None
    return 1e-5 if clip else 1e-6


def grid_of(
    positions: int | None, prefix: int, described: Described, patch_size: int
) -> tuple[int, int, int]:
    """Rows and columns of patches, and how many of `positions` stand before them.

    The source's own size decides where it fits the number; else the grid is a square.
    """
    said = image_size_of(described)
    fits = sorted({prefix, min(prefix, 1), 0}, reverse=True)
    if said is not None:
        rows, columns = said[0] // patch_size, said[1] // patch_size
        if positions is None and not 0 < rows * columns <= MOST_PATCHES:
            raise ConfigError(f"image_size {said} is {rows * columns:,} patches (limit: {MOST_PATCHES:,})")
        if positions is None or positions - rows * columns in fits:
            return rows, columns, 0 if positions is None else positions - rows * columns
    if positions is None:
        raise ConfigError("it has no position embeddings, and no config.json gives image_size")
    for extra in fits:
        rows = math.isqrt(positions - extra)
        if rows * rows == positions - extra:
            return rows, rows, extra
    raise ConfigError("the positions are not a square grid, and no config.json gives image_size")


def image_size_of(described: Described) -> tuple[int, int] | None:
    """(height, width) as the source writes it, or None."""
    size = described.first("img_size", "image_size", "input_size")
    if size is None:
        timm = described.first("pretrained_cfg")
        size = timm.get("input_size") if isinstance(timm, Mapping) else None
    if isinstance(size, (list, tuple)) and len(size) >= 2:
        edges = whole(size[-2], "image_size"), whole(size[-1], "image_size")
    elif size is None:
        return None
    else:
        edges = whole(size, "image_size"), whole(size, "image_size")
    if max(edges) > MAX_EDGE:
        raise SourceError(f"image_size is {max(edges):,} pixels (limit: {MAX_EDGE:,})")
    return edges
