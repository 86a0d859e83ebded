"""How each source calls its tensors, and what they are called here.

A format is a telling key, a preparation (fused tensors apart, kernels transposed), and rules of renaming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Format:
    """One source's way of writing a ViT down."""

    name: str
    tell: str  # a pattern that some key matches, and no other format's does
    prepare: Callable[[Tensors], Tensors]
    rules: tuple[tuple[str, str], ...]  # patterns of whole names, and what becomes of them
    ignored: str = "(?!)"  # tensors without a part in classifying

    def rename(self, tensors: Tensors) -> tuple[Tensors, list[str]]:
        """The tensors by their names here, and the names that no rule knows."""
        renamed: Tensors = {}
        unknown = []
        for name, value in self.prepare(tensors).items():
            for pattern, replacement in self.rules:
                if match := re.fullmatch(pattern, name):
                    renamed[match.expand(replacement)] = value
                    break
            else:
                if not re.fullmatch(self.ignored, name):
                    unknown.append(name)
        return renamed, unknown


END = r"\.(weight|bias)"


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


def split_qkv(tensors: Tensors) -> Tensors:
    """Query, key and value apart, which timm and torchvision stack in this order."""
    apart: Tensors = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"(.*)(?:qkv\.|in_proj_)(weight|bias)", name):
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                apart[f"{match[1]}{part}.{match[2]}"] = piece.contiguous()
        else:
            apart[name] = value
    return apart


def from_flax(tensors: Tensors) -> Tensors:
    """Flax's kernels are `[in, out]`, in attention `[in, heads, features]` and `[heads, features, out]`."""
    turned: Tensors = {}
    for name, value in tensors.items():
        name = name.removeprefix("opt/target/").removeprefix("params/")
        if name == "embedding/kernel":
            value = value.permute(3, 2, 0, 1)  # (P, P, 3, D) to (D, 3, P, P)
        elif re.search(r"/(query|key|value)/kernel$", name):
            value = value.flatten(1).T
        elif re.search(r"/(query|key|value)/bias$", name):
            value = value.flatten()
        elif name.endswith("/out/kernel"):
            value = value.flatten(0, 1).T
        elif name.endswith("/kernel"):
            value = value.T
        name = name.replace("/scale", "/weight").replace("/kernel", "/weight")
        turned[name] = value.contiguous()
    return turned


def bare(tensors: Tensors) -> Tensors:
    """Without the name of the backbone in front."""
    return {re.sub(r"^(vit|deit|dinov2)\.", "", name): value for name, value in tensors.items()}


HF_BLOCK = r"encoder\.layer\.(\d+)\."
HUGGING_FACE = Format(
    name="Hugging Face",
    tell=r"(?:(?:vit|deit|dinov2)\.)?embeddings\.patch_embeddings\.projection\.weight",
    prepare=bare,
    rules=(
        (r"embeddings\.cls_token", "class_token"),
        (r"embeddings\.position_embeddings", "position"),
        (r"embeddings\.patch_embeddings\.projection" + END, r"patch_embedding.\1"),
        (HF_BLOCK + r"(?:layernorm_before|norm1)" + END, r"blocks.\1.norm1.\2"),
        (HF_BLOCK + r"(?:layernorm_after|norm2)" + END, r"blocks.\1.norm2.\2"),
        (HF_BLOCK + r"attention\.attention\.(query|key|value)" + END, r"blocks.\1.attention.\2.\3"),
        (HF_BLOCK + r"attention\.output\.dense" + END, r"blocks.\1.attention.proj.\2"),
        (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)" + END, r"blocks.\1.mlp.fc1.\2"),
        (HF_BLOCK + r"(?:output\.dense|mlp\.fc2)" + END, r"blocks.\1.mlp.fc2.\2"),
        (HF_BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.scale\2.factor"),
        (r"layernorm" + END, r"norm.\1"),
        (r"classifier" + END, r"head.\1"),
    ),
    # The pooler belongs to masked pre-training and to feature extraction, not to the class token's logits.
    ignored=r"pooler\..*|embeddings\.mask_token|embeddings\.position_ids",
)

TIMM_BLOCK = r"blocks\.(\d+)\."
TIMM = Format(
    name="timm",
    tell=r"patch_embed\.proj\.weight",
    prepare=split_qkv,
    rules=(
        (r"cls_token", "class_token"),
        (r"pos_embed", "position"),
        (r"patch_embed\.proj" + END, r"patch_embedding.\1"),
        (TIMM_BLOCK + r"norm([12])" + END, r"blocks.\1.norm\2.\3"),
        (TIMM_BLOCK + r"attn\.(query|key|value|proj)" + END, r"blocks.\1.attention.\2.\3"),
        (TIMM_BLOCK + r"mlp\.fc([12])" + END, r"blocks.\1.mlp.fc\2.\3"),
        (TIMM_BLOCK + r"ls([12])\.gamma", r"blocks.\1.scale\2.factor"),
        (r"norm" + END, r"norm.\1"),
        (r"pre_logits\.fc" + END, r"pre_logits.\1"),
        (r"head" + END, r"head.\1"),
    ),
    ignored=r"mask_token",
)

TV_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION = Format(
    name="torchvision",
    tell=r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",
    prepare=split_qkv,
    rules=(
        (r"class_token", "class_token"),
        (r"encoder\.pos_embedding", "position"),
        (r"conv_proj" + END, r"patch_embedding.\1"),
        (TV_BLOCK + r"ln_([12])" + END, r"blocks.\1.norm\2.\3"),
        (TV_BLOCK + r"self_attention\.(query|key|value)" + END, r"blocks.\1.attention.\2.\3"),
        (TV_BLOCK + r"self_attention\.out_proj" + END, r"blocks.\1.attention.proj.\2"),
        (TV_BLOCK + r"mlp\.(?:0|linear_1)" + END, r"blocks.\1.mlp.fc1.\2"),
        (TV_BLOCK + r"mlp\.(?:3|linear_2)" + END, r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln" + END, r"norm.\1"),
        (r"heads\.pre_logits" + END, r"pre_logits.\1"),
        (r"heads\.head" + END, r"head.\1"),
    ),
)

GOOGLE_BLOCK = r"Transformer/encoderblock_(\d+)/"
FLAX_END = r"/(weight|bias)"
GOOGLE = Format(
    name="Google",
    tell=r"(?:opt/target/|params/)?Transformer/encoderblock_0/LayerNorm_0/scale",
    prepare=from_flax,
    rules=(
        (r"cls", "class_token"),
        (r"Transformer/posembed_input/pos_embedding", "position"),
        (r"embedding" + FLAX_END, r"patch_embedding.\1"),
        (GOOGLE_BLOCK + r"LayerNorm_0" + FLAX_END, r"blocks.\1.norm1.\2"),
        (GOOGLE_BLOCK + r"LayerNorm_2" + FLAX_END, r"blocks.\1.norm2.\2"),
        (
            GOOGLE_BLOCK + r"MultiHeadDotProductAttention_1/(query|key|value)" + FLAX_END,
            r"blocks.\1.attention.\2.\3",
        ),
        (GOOGLE_BLOCK + r"MultiHeadDotProductAttention_1/out" + FLAX_END, r"blocks.\1.attention.proj.\2"),
        (GOOGLE_BLOCK + r"MlpBlock_3/Dense_0" + FLAX_END, r"blocks.\1.mlp.fc1.\2"),
        (GOOGLE_BLOCK + r"MlpBlock_3/Dense_1" + FLAX_END, r"blocks.\1.mlp.fc2.\2"),
        (r"Transformer/encoder_norm" + FLAX_END, r"norm.\1"),
        (r"pre_logits" + FLAX_END, r"pre_logits.\1"),
        (r"head" + FLAX_END, r"head.\1"),
    ),
)

FORMATS = (HUGGING_FACE, TIMM, TORCHVISION, GOOGLE)


def recognise(names: Mapping[str, Tensor]) -> Format | None:
    """The format that some name gives away."""
    return next((form for form in FORMATS if any(re.fullmatch(form.tell, name) for name in names)), None)
