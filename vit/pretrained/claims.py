"""Facts of a description beyond the tensors: followed where the model here can, else refused by their name.

Two models can have the same tensors and other logits: pooling, activation and norms leave no trace in a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vit.config import ConfigError

if TYPE_CHECKING:
    from vit.pretrained.formats import Tensors

# Arguments of timm's VisionTransformer and Beit that the tensors tell, that are followed, or that only
# training reads. Any other may change the logits.
_ARGUMENTS = (
    "img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias "
    "qk_norm proj_bias init_values class_token no_embed_class reg_tokens pre_norm final_norm fc_norm "
    "use_fc_norm "
    "pool_include_prefix act_layer norm_layer scale_attn_norm scale_mlp_norm swiglu_mlp scale_mlp pos_embed "
    "use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias dynamic_img_size dynamic_img_pad "
    "strict_img_size drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate "
    "drop_block_rate head_init_scale weight_init fix_init device dtype pretrained scriptable exportable "
    "checkpoint_path cache_dir"
)
MODEL_ARGS = frozenset(_ARGUMENTS.split())
LAYER_NORMS = ("layernorm", "layer_norm", "LayerNorm", "layernormfp32")
# Model types of transformers that this model computes as they do.
_TYPES = (
    "vit deit beit data2vec-vision dinov2 dinov2_with_registers dinov3_vit ijepa vit_mae vit_msn clip "
    "metaclip_2 siglip"
)
MODEL_TYPES = frozenset(_TYPES.split())
POOLINGS = {"token": ("class", "class_and_last"), "avg": ("mean",), "map": ("attention",)}
OTHER_MODELS = (
    (
        r"blocks\.\d+\.(?:attns|ffns)\..*",
        "its blocks hold several attentions and MLPs side by side (parallel blocks), this model's one",
    ),
    (
        r"blocks\.\d+\.(?:in_proj|attn_out_proj|mlp_out_proj|in_norm)\b.*",
        "attention and MLP of a block run side by side (parallel blocks), this model's one after the other",
    ),
    (
        r"(?:patch_embed|embeddings\.patch_embeddings)\.backbone\..*",
        "a hybrid, whose patches a convolutional network (R26, R50) makes; this model's are one convolution",
    ),
)


class OtherModelError(ConfigError):
    """Weights of a model that this project's model cannot be, whatever is said about it."""


def refuse_other_models(unknown: Iterable[str]) -> None:
    """Refuse the tensors of models that are known, and known to be others.

    Raises:
        OtherModelError: naming the kind.
    """
    for name in unknown:
        for pattern, meaning in OTHER_MODELS:
            if re.fullmatch(pattern, name):
                raise OtherModelError(f"{meaning} ({name})")


def refuse_claims(facts: Mapping[str, Any], stated: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """Refuse what a description says and this model cannot follow; return what is assumed.

    Args:
        facts: the description of the source, flat.
        stated: the part of it that documents say, and no training script.
        tensors: the weights, with the names of `vit.model`.

    Raises:
        ConfigError: naming the fact.
    """
    if code := stated.get("auto_map"):
        raise OtherModelError(
            f"its config.json has an auto_map ({code!r:.100}), code of its own, which may do more than its "
            "tensors say; if it is a plain ViT, remove that field"
        )
    for part in ("model_args", "model_kwargs"):
        arguments = facts.get(part)
        for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
            if name not in MODEL_ARGS and value is not None and value is not False:
                raise OtherModelError(
                    f"{part} says {name!s:.60} {value!r:.60}, which may change the logits, and is not known"
                )
    norm = facts.get("norm_layer")
    if norm is not None and norm not in LAYER_NORMS:
        raise OtherModelError(f"its norm_layer is {norm!r:.60}, and this model's norms are LayerNorm")
    if "_rpn_" in str(facts.get("architecture")):
        raise OtherModelError("its blocks normalize after attention and MLP, this model's before (rpn)")
    _refuse_other_sizes(stated, tensors)
    kind = str(facts.get("model_type") or "").removesuffix("_vision_model")
    if kind and kind not in MODEL_TYPES:
        return [f"its steps are those of a ViT (the model type {kind!r:.60} is not known here)"]
    return []


def _refuse_other_sizes(facts: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse a description of another model: its own library would build what it says."""
    patches = tensors["patch_embedding.weight"]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for names, found in (
        (("hidden_size", "embed_dim"), patches.shape[0]),
        (("num_hidden_layers", "depth"), depth),
        (("patch_size",), patches.shape[-1]),
    ):
        for name in names:
            said = facts.get(name)
            if isinstance(said, (list, tuple)) and len(set(map(str, said))) == 1:
                said = said[0]
            if said is not None and said != found:
                raise ConfigError(f"its description says {name} {said!r:.60}, its tensors {found}")


def pooling_of(facts: Mapping[str, Any], tensors: Tensors, found: tuple[str, str]) -> tuple[str, str]:
    """Return the pooling and the place of the last norm that the description says, if the tensors fit it.

    Args:
        facts: the description of the source, flat.
        tensors: the weights, with the names of `vit.model`.
        found: what the tensors alone look like.

    Raises:
        ConfigError: for a pooling that this model does not know, or that the tensors contradict.
    """
    said = facts.get("global_pool")
    said = {True: "avg", False: "token"}[said] if isinstance(said, bool) else said  # MAE's script
    prefix = [name for name in ("class_token", "registers", "distillation") if name in tensors]
    if said == "token" and "fc_norm.weight" in tensors and "class_token" in tensors:
        return "class", "before"  # the norm of one token is the same before and after it is taken
    if said == "" and "head.weight" in tensors:
        raise OtherModelError("its head scores every token (global_pool is ''), this model's the whole image")
    if said not in (None, "") and found[0] not in POOLINGS.get(str(said), ()):
        known = ", ".join(POOLINGS)
        raise OtherModelError(
            f"its pooling {said!r:.60} is not one that this model knows, or not that of its tensors; known: "
            f"{known}"
        )
    whole = bool(facts.get("pool_include_prefix"))
    if prefix and found[0] == "mean" and whole:
        raise OtherModelError(
            f"its mean is over all tokens ({', '.join(prefix)} too: pool_include_prefix), this model's over "
            "the patches"
        )
    if prefix and found[0] == "attention" and not whole:
        raise OtherModelError(
            f"its attention pool reads the patches alone (pooling 'map' beside {', '.join(prefix)}), this "
            "model's reads all tokens"
        )
    return found
