"""Names of the tensors in each source, and their names here.

A format has a signature, the name of a tensor that no other format has; a preparation, which splits fused
tensors and transposes kernels; and rules of renaming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vit.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Format:
    """One source's way of writing a ViT down."""

    name: str
    signature: str  # a pattern that some key matches, and no other format's does
    prepare: Callable[[Tensors], Tensors]
    rules: tuple[tuple[str, str], ...]  # patterns of whole names, and what becomes of them
    ignored: str = "(?!)"  # tensors without a part in classifying

    def rename(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """Return the tensors by their names here, and those that no rule knows.

        Raises a `ConfigError` for two tensors of one part, and fused tensors that cannot be split.
        """
        known: list[tuple[str, str, Tensor]] = []
        unknown: Tensors = {}
        for name, value in self.prepare(tensors).items():
            for pattern, replacement in self.rules:
                if match := re.fullmatch(pattern, name):
                    if value.numel():  # DINOv3 stores 0 registers
                        known.append((name, match.expand(replacement), value))
                    break
            else:
                if not re.fullmatch(self.ignored, name):
                    unknown[name] = value
        return rename_tensors(known), unknown


def recognize_format(names: Iterable[str]) -> Format | None:
    """Return the format that some name gives away."""
    return next((form for form in FORMATS if any(re.fullmatch(form.signature, name) for name in names)), None)


def rename_tensors(names: Iterable[tuple[str, str, Tensor]]) -> Tensors:
    """Return tensors by their new names, from old name, new name and tensor.

    Raises a `ConfigError` for two tensors that would have one name; the same one twice (tied weights) is one.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for old, new, value in names:
        first, there = found.setdefault(new, (old, value))
        if there is not value and not (there.shape == value.shape and there.equal(value)):
            raise ConfigError(f"it has two tensors for {new!r}: {first} and {old}")
    return {name: value for name, (_, value) in found.items()}


# --- Fused tensors are split, and kernels turned the way that torch has them ---


def split_tensor(name: str, value: Tensor, *parts: str) -> Tensors:
    """Split a tensor along its first dimension into parts of one size."""
    if value.ndim == 0 or len(value) % len(parts):
        raise ConfigError(f"{name} has the shape {list(value.shape)}, which does not split into {len(parts)}")
    return {part: each.contiguous() for part, each in zip(parts, value.chunk(len(parts)), strict=True)}


QKV = ("query", "key", "value")


def split_qkv_tensor(tensors: Tensors) -> Tensors:
    """Split query, key and value, which timm and torchvision stack in this order.

    BEiT has biases of the query and the value alone, beside the stacked weight.
    """
    split: Tensors = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"(.*)(?:qkv\.|in_proj_)(weight|bias)", name):
            split |= split_tensor(name, value, *(f"{match[1]}{part}.{match[2]}" for part in QKV))
        elif match := re.fullmatch(r"(attn_pool\.)kv\.(weight|bias)", name):
            split |= split_tensor(name, value, *(f"{match[1]}{part}.{match[2]}" for part in QKV[1:]))
        elif match := re.fullmatch(r"(.*attn\.)([qv])_bias", name):
            split[f"{match[1]}{'query' if match[2] == 'q' else 'value'}.bias"] = value
        else:
            split[name] = value
    return split


def split_gates(tensors: Tensors) -> Tensors:
    """Split a gated MLP's two first layers, the gate first: stacked, they are twice as wide as the last."""
    split: Tensors = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*mlp\.)(?:fc1|weights_in)\.(weight|bias)", name)
        names = [f"{match[1]}{last}.weight" for last in ("fc2", "weights_out")] if match else []
        widths = [tensors[last].shape[1] for last in names if last in tensors and tensors[last].ndim == 2]
        if match and widths and value.ndim and len(value) == 2 * widths[0]:
            split |= split_tensor(name, value, f"{match[1]}gate.{match[2]}", f"{match[1]}fc1.{match[2]}")
        else:
            split[name.replace("mlp.weights_out.", "mlp.fc2.")] = value
    return split


BACKBONES = "vit|deit|dinov2|dinov2_with_registers|beit|data2vec_vision|ijepa|vit_mae|vit_msn"


def split_timm(tensors: Tensors) -> Tensors:
    """Split all that timm fuses."""
    return split_gates(split_qkv_tensor(tensors))


def strip_backbone(tensors: Tensors) -> Tensors:
    """Strip transformers' name of the backbone, and split gates and the attention pool's keys and values."""
    front = re.compile(rf"^({BACKBONES}|vision_model)\.")
    return split_timm(rename_tensors((name, front.sub("", name), value) for name, value in tensors.items()))


def transpose_flax(tensors: Tensors) -> Tensors:
    """Turn Flax's kernels: `[in, out]`, in attention `[in, heads, features]` and `[heads, features, out]`."""
    front = re.compile(r"^(?:opt/target/)?(?:params/)?")
    turned: Tensors = {}
    for name, value in rename_tensors((n, front.sub("", n), each) for n, each in tensors.items()).items():
        if name == "embedding/kernel" and value.ndim == 4:
            value = value.permute(3, 2, 0, 1)  # (P, P, 3, D) to (D, 3, P, P)
        elif re.search(r"/(query|key|value)/kernel$", name) and value.ndim > 1:
            value = value.flatten(1).T
        elif re.search(r"/(query|key|value)/bias$", name):
            value = value.flatten()
        elif name.endswith("/out/kernel") and value.ndim == 3:
            value = value.flatten(0, 1).T
        elif name.endswith("/kernel") and value.ndim == 2:
            value = value.T
        name = name.replace("/scale", "/weight").replace("/kernel", "/weight")
        turned[name] = value.contiguous()
    return turned


# --- The formats ---


END = r"\.(weight|bias)"

# Files say encoder.layer.0.attention.attention.query, transformers 5 in memory layers.0.attention.q_proj.
HF_BLOCK = r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\."
HUGGING_FACE = Format(
    name="Hugging Face",
    signature=rf"(?:(?:{BACKBONES})\.)?embeddings\.patch_embeddings(?:\.projection)?\.weight",
    prepare=strip_backbone,
    rules=(
        (r"embeddings\.cls_token", "class_token"),
        (r"embeddings\.distillation_token", "distillation"),
        (r"embeddings\.register_tokens", "registers"),
        (r"embeddings\.position_embeddings", "position"),
        (r"embeddings\.patch_embeddings(?:\.projection)?" + END, r"patch_embedding.\1"),
        (HF_BLOCK + r"(?:layernorm_before|norm1)" + END, r"blocks.\1.norm1.\2"),
        (HF_BLOCK + r"(?:layernorm_after|norm2)" + END, r"blocks.\1.norm2.\2"),
        *(
            (HF_BLOCK + rf"attention\.(?:attention\.{p}|{p[0]}_proj)" + END, rf"blocks.\1.attention.{p}.\2")
            for p in QKV
        ),
        (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)" + END, r"blocks.\1.attention.proj.\2"),
        (HF_BLOCK + r"attention\..*relative_position_bias_table", r"blocks.\1.attention.bias_table"),
        (r"encoder\.relative_position_bias\.relative_position_bias_table", "bias_table"),
        (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1|mlp\.up_proj)" + END, r"blocks.\1.mlp.fc1.\2"),
        (HF_BLOCK + r"mlp\.gate(?:_proj)?" + END, r"blocks.\1.mlp.gate.\2"),
        (HF_BLOCK + r"(?:output\.dense|mlp\.fc2|mlp\.down_proj)" + END, r"blocks.\1.mlp.fc2.\2"),
        (HF_BLOCK + r"(?:layer_scale([12])\.lambda1|lambda_([12]))", r"blocks.\1.scale\2\3.factor"),
        (r"(?:layernorm|norm)" + END, r"norm.\1"),
        (r"pooler\.layernorm" + END, r"fc_norm.\1"),
        (r"(?:cls_)?classifier" + END, r"head.\1"),
        (r"distillation_classifier" + END, r"head_distillation.\1"),
    ),
    # The pooler belongs to masked pre-training and to feature extraction, not to the class token's logits.
    ignored=r"pooler\.dense\..*|embeddings\.mask_token|embeddings\.position_ids|.*relative_position_index",
)

CLIP_BLOCK = r"encoder\.layers\.(\d+)\."
CLIP = Format(
    name="Hugging Face",
    signature=r"(?:vision_model\.)?embeddings\.patch_embedding\.weight",
    prepare=strip_backbone,
    rules=(
        (r"embeddings\.class_embedding", "class_token"),
        (r"embeddings\.position_embedding\.weight", "position"),
        (r"embeddings\.patch_embedding" + END, r"patch_embedding.\1"),
        (r"pre_layrnorm" + END, r"pre_norm.\1"),
        (CLIP_BLOCK + r"layer_norm([12])" + END, r"blocks.\1.norm\2.\3"),
        *((CLIP_BLOCK + rf"self_attn\.{p[0]}_proj" + END, rf"blocks.\1.attention.{p}.\2") for p in QKV),
        (CLIP_BLOCK + r"self_attn\.out_proj" + END, r"blocks.\1.attention.proj.\2"),
        (CLIP_BLOCK + r"mlp\.fc([12])" + END, r"blocks.\1.mlp.fc\2.\3"),
        (r"post_layernorm" + END, r"norm.\1"),
        (r"head\.probe", "pool.probe"),
        (r"head\.attention\.(query|key|value)" + END, r"pool.\1.\2"),
        (r"head\.attention\.out_proj" + END, r"pool.proj.\1"),
        (r"head\.layernorm" + END, r"pool.norm.\1"),
        (r"head\.mlp\.fc([12])" + END, r"pool.mlp.fc\1.\2"),
        (r"classifier" + END, r"head.\1"),
    ),
    ignored=r"embeddings\.position_ids|text_model\..*|text_projection\..*|logit_(scale|bias)",
)

TIMM_BLOCK = r"blocks\.(\d+)\."
TIMM = Format(
    name="timm",
    signature=r"patch_embed\.proj\.weight",
    prepare=split_timm,
    rules=(
        (r"cls_token", "class_token"),
        (r"dist_token", "distillation"),
        (r"(?:reg_token|register_tokens)", "registers"),
        (r"pos_embed", "position"),
        (r"patch_embed\.proj" + END, r"patch_embedding.\1"),
        (r"norm_pre" + END, r"pre_norm.\1"),
        (TIMM_BLOCK + r"norm([12])" + END, r"blocks.\1.norm\2.\3"),
        *((TIMM_BLOCK + rf"attn\.{p[0]}_norm" + END, rf"blocks.\1.attention.{p}_norm.\2") for p in QKV[:2]),
        (TIMM_BLOCK + r"attn\.(query|key|value|proj)" + END, r"blocks.\1.attention.\2.\3"),
        (TIMM_BLOCK + r"attn\.relative_position_bias_table", r"blocks.\1.attention.bias_table"),
        (r"rel_pos_bias\.relative_position_bias_table", "bias_table"),
        (TIMM_BLOCK + r"mlp\.fc([12])" + END, r"blocks.\1.mlp.fc\2.\3"),
        (TIMM_BLOCK + r"mlp\.gate" + END, r"blocks.\1.mlp.gate.\2"),
        (TIMM_BLOCK + r"(?:ls([12])\.gamma|gamma_([12]))", r"blocks.\1.scale\2\3.factor"),
        (r"((?:fc_)?norm)" + END, r"\1.\2"),
        (r"attn_pool\.latent", "pool.probe"),
        (r"attn_pool\.q" + END, r"pool.query.\1"),
        (r"attn_pool\.(key|value|proj|norm)" + END, r"pool.\1.\2"),
        (r"attn_pool\.mlp\.fc([12])" + END, r"pool.mlp.fc\1.\2"),
        (r"pre_logits\.fc" + END, r"pre_logits.\1"),
        (r"head" + END, r"head.\1"),
        (r"head_dist" + END, r"head_distillation.\1"),
    ),
    ignored=r"mask_token|.*relative_position_index|.*\.attn\.k_bias",
)

TV_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION = Format(
    name="torchvision",
    signature=r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",
    prepare=split_qkv_tensor,
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
GOOGLE_ATTENTION = GOOGLE_BLOCK + r"MultiHeadDotProductAttention_1/"
FLAX_END = r"/(weight|bias)"
GOOGLE = Format(
    name="Google",
    signature=r"(?:opt/target/|params/)?Transformer/encoderblock_0/LayerNorm_0/scale",
    prepare=transpose_flax,
    rules=(
        (r"cls", "class_token"),
        (r"Transformer/posembed_input/pos_embedding", "position"),
        (r"embedding" + FLAX_END, r"patch_embedding.\1"),
        (GOOGLE_BLOCK + r"LayerNorm_0" + FLAX_END, r"blocks.\1.norm1.\2"),
        (GOOGLE_BLOCK + r"LayerNorm_2" + FLAX_END, r"blocks.\1.norm2.\2"),
        (GOOGLE_ATTENTION + r"(query|key|value)" + FLAX_END, r"blocks.\1.attention.\2.\3"),
        (GOOGLE_ATTENTION + r"out" + FLAX_END, r"blocks.\1.attention.proj.\2"),
        (GOOGLE_BLOCK + r"MlpBlock_3/Dense_0" + FLAX_END, r"blocks.\1.mlp.fc1.\2"),
        (GOOGLE_BLOCK + r"MlpBlock_3/Dense_1" + FLAX_END, r"blocks.\1.mlp.fc2.\2"),
        (r"Transformer/encoder_norm" + FLAX_END, r"norm.\1"),
        (r"pre_logits" + FLAX_END, r"pre_logits.\1"),
        (r"head" + FLAX_END, r"head.\1"),
    ),
)

FORMATS = (HUGGING_FACE, CLIP, TIMM, TORCHVISION, GOOGLE)
