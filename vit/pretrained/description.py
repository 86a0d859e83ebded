"""The description beside the weights: its documents, their fields, and facts that no tensor has.

Two models can have the same tensors and other logits: pooling, activation and norms leave no trace in a name.
Such a fact is followed where the model here can, else refused by its name. No torch here: ONNX models have
the same documents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError
from runtime.strict_json import parse_json
from vit.config import ConfigError, is_number

if TYPE_CHECKING:
    from vit.pretrained.formats import Tensors

Triple = tuple[float, float, float]
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of models that take text too, since transformers 5
ONE_CLASS = (
    "it has one output, and a softmax over one class is 1.0 for every image: a model of two classes with a "
    "sigmoid, or of a number (regression); train it with one output per class, both of two included"
)
OTHER_SCORES = {"regression": "a regression model gives numbers, no classes"}
SEVERAL = "multi_label_classification"  # an image has several labels: a sigmoid scores each class for itself
THRESHOLD = 0.5  # of a label, where the source states none
THRESHOLD_ASSUMED = f"a threshold of {THRESHOLD} for each label: an image has those whose sigmoid reaches it"


class SourceError(InputError):
    """Weights that cannot be read or do not fit; the message says which and what was expected."""


class UnstatedError(SourceError):
    """A fact that the source does not state, and that an option of `python -m vit import` does."""


class OtherModelError(ConfigError):
    """Weights of a model that this project's model cannot be, whatever describes it."""


# --- The documents ---


def read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """Return the fields of the JSON object in a file.

    Args:
        file: a link that leads nowhere is an error.
        required: if false, a file that does not exist is an empty object.

    Raises:
        SourceError: when the file cannot be read, or holds no JSON object.
    """
    if not file.is_file():
        if file.is_symlink():
            raise SourceError(f"{file}: a link to a file that is not there; load the model again")
        if required:
            raise SourceError(f"{file}: it cannot be read: no such file")
        return {}
    try:
        document = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: not a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise SourceError(f"{file}: expected a JSON object, found {type(document).__name__}")
    return document


def read_preprocessor(folder: Path) -> tuple[dict[str, Any], Path]:
    """Read the preprocessing that a folder of transformers describes.

    Args:
        folder: of preprocessor_config.json, or processor_config.json with an `image_processor`.

    Returns:
        the fields, empty for none, and the file that has them.
    """
    file, newer = folder / PREPROCESSOR, folder / PROCESSOR
    if document := read_json(file):
        return document, file
    inner = read_json(newer).get("image_processor")
    return (inner, newer) if isinstance(inner, dict) else ({}, file)


def choose_labels(config: Mapping[str, Any], classes: int | None = None) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels of the classes, or their class indices.

    Args:
        config: config.json.
        classes: number of classes; None for as many as the document names.

    Returns:
        the labels, and one sentence if these are the indices.
    """
    named, inverse = config.get("id2label"), config.get("label2id")
    if not named and isinstance(inverse, Mapping):
        named = {str(index): name for name, index in inverse.items()}
    listed = config.get("label_names") or as_fields(config.get("pretrained_cfg")).get("label_names")
    if isinstance(named, Mapping) and all(str(i) in named for i in range(len(named))):
        listed = [named[str(i)] for i in range(len(named))]
    elif named:
        listed = named
    count = len(listed) if isinstance(listed, (list, Mapping)) else 0
    classes = count if classes is None else classes
    if (
        isinstance(listed, list)
        and all(isinstance(i, str) or is_number(i) for i in listed)
        and count == classes
    ):
        return tuple(map(str, listed)), []
    unfit = f"; config.json names {count}, which are not 0 to {classes - 1}" if listed else ""
    guessed = [f"the class indices, 0 to {classes - 1}, as their labels{unfit} (--labels FILE names them)"]
    return tuple(map(str, range(classes))), guessed if classes else []


# --- Fields of a document ---


def as_fields(value: Any) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, Mapping) else {}


def is_whole(value: Any, least: int = 1) -> bool:
    """Return whether a value is a whole number, written without a point, of at least `least`."""
    return isinstance(value, int) and is_number(value) and value >= least


def check_field(name: str, value: Any, accepted: bool, expected: str) -> Any:
    """Return the value of a field if it is accepted; else raise a `SourceError` with what is expected."""
    if not accepted:
        raise SourceError(f"{name} is {value!r:.60}, expected {expected}")
    return value


def parse_whole(value: Any, name: str) -> int:
    """Return a whole number from 1, of pixels or of parts of the model; else raise a `SourceError`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(check_field(name, value, is_whole(value), "a whole number of pixels from 1"))


def parse_number(value: Any, name: str, *, above: float = -math.inf) -> float:
    """Return a finite number above `above`; else raise a `SourceError`."""
    least = "" if above == -math.inf else f" above {above:g}"
    accepted = is_number(value) and abs(value) < 1e30 and value > above
    return float(check_field(name, value, accepted, f"a number{least}"))


def parse_channels(values: Any, name: str, *, above: float = -math.inf) -> Triple:
    """Return one number per channel, each above `above`; a single one stands for all three."""
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    check_field(name, values, len(listed) in (1, 3), "a number per channel: red, green, blue")
    numbers = [parse_number(value, name, above=above) for value in listed]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


# --- The documents, the training script and the choices of the caller in one ---


@dataclass(frozen=True)
class Description:
    """Facts of a source beside its tensors, in one flat dictionary, and the choices of the caller."""

    facts: Mapping[str, Any]  # of the documents and, where these are silent, of the training script
    activation: str | None = None
    heads: int | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)  # of the documents alone

    @staticmethod
    def from_documents(
        config: Mapping[str, Any],
        arguments: Mapping[str, Any],
        heads: int | None = None,
        activation: str | None = None,
    ) -> Description:
        """Flatten config.json: `vision_config` (CLIP, SigLIP) and `model_args` (timm) state the same."""
        stated = dict(config)
        pool = as_fields(config.get("pretrained_cfg")).get("global_pool")
        # timm builds the model with it, unless model_args have another one.
        stated |= {} if pool is None else {"global_pool": pool}
        for part in ("vision_config", "model_args"):
            # An outer model_type is "siglip" or "clip"; the inner one may be absent.
            stated |= {k: v for k, v in as_fields(config.get(part)).items() if k != "model_type"}
        script = {"architecture": arguments.get("model"), "global_pool": arguments.get("gp")}  # timm's
        script = {name: value for name, value in script.items() if isinstance(value, str)}
        script |= {**arguments, **as_fields(arguments.get("model_kwargs"))}
        return Description(script | stated, activation, heads, stated)

    def first(self, *names: str) -> Any:
        """Return the first of these facts that is there and not null."""
        return next((self.facts[name] for name in names if self.facts.get(name) is not None), None)

    def read_heads(self) -> int | None:
        """Return the number of attention heads that the caller or the source states."""
        value = self.first("num_attention_heads", "num_heads", "heads") if self.heads is None else self.heads
        return None if value is None else parse_whole(value, "the number of attention heads")

    @property
    def architecture(self) -> str:
        """Name of the model in timm, or its type in transformers; empty for none."""
        return str(self.first("architecture", "arch", "model_type") or "")

    @property
    def model_type(self) -> str:
        """Name of the model in transformers; "clip" for a whole model as for its vision part."""
        return str(self.first("model_type") or "").removesuffix("_vision_model")


# --- Facts that are refused by their name, or followed ---


# Arguments of timm's VisionTransformer and Beit that the tensors show, that are followed, or that only
# training reads. Any other may change the logits.
_ARGUMENTS = (
    "img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias "
    "qk_norm proj_bias init_values class_token no_embed_class reg_tokens pre_norm final_norm fc_norm "
    "use_fc_norm pool_include_prefix act_layer norm_layer scale_attn_norm scale_mlp_norm swiglu_mlp "
    "scale_mlp pos_embed use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias dynamic_img_size "
    "dynamic_img_pad strict_img_size drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate "
    "drop_path_rate drop_block_rate head_init_scale weight_init fix_init device dtype pretrained scriptable "
    "exportable checkpoint_path cache_dir"
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
_MANY = "its blocks hold several attentions and MLPs side by side (parallel blocks), this model's one"
_BESIDE = "attention and MLP of a block run side by side (parallel blocks), this model's one after the other"
_HYBRID = "a hybrid, whose patches a convolutional network (R26, R50) makes; this model's are one convolution"
OTHER_MODELS = {  # by the names of their tensors
    r"blocks\.\d+\.(?:attns|ffns)\..*": _MANY,
    r"blocks\.\d+\.(?:in_proj|attn_out_proj|mlp_out_proj|in_norm)\b.*": _BESIDE,
    r"(?:patch_embed|embeddings\.patch_embeddings)\.backbone\..*": _HYBRID,
}


def refuse_other_models(unknown: Iterable[str]) -> None:
    """Refuse the tensors of models that are known, and known to be others."""
    for name in unknown:
        for pattern, meaning in OTHER_MODELS.items():
            if re.fullmatch(pattern, name):
                raise OtherModelError(f"{meaning} ({name})")


def gives_several_labels(config: Mapping[str, Any]) -> bool:
    """Return whether a model gives several labels per image; refuse outputs that are no logits of classes.

    Args:
        config: config.json.

    Raises:
        SourceError: naming the problem type, or the function that makes scores of the outputs.
    """
    ours = "this project's scores are a softmax over the classes"
    problem = config.get("problem_type")
    applied = config.get("function_to_apply")  # as the pipelines of transformers read it
    if applied not in (None, "", "sigmoid" if problem == SEVERAL else "softmax"):
        raise SourceError(f"function_to_apply is {applied!r:.60} in config.json; {ours}")
    if problem == SEVERAL:
        return True
    if problem not in (None, "", "single_label_classification"):
        meaning = OTHER_SCORES.get(str(problem), "its outputs are not known here")
        raise SourceError(f"problem_type is {problem!r:.60} in config.json: {meaning}; {ours}")
    return False


def refuse_other_facts(description: Description, tensors: Tensors) -> list[str]:
    """Refuse what a description states and this model cannot follow; return what is assumed."""
    facts = description.facts
    gives_several_labels(facts)
    if code := description.stated.get("auto_map"):
        raise OtherModelError(
            f"its config.json has an auto_map ({code!r:.100}), code of its own, which may do more than its "
            "tensors say; if it is a plain ViT, remove that field"
        )
    for part in ("model_args", "model_kwargs"):
        for name, value in as_fields(facts.get(part)).items():
            if name not in MODEL_ARGS and value is not None and value is not False:
                raise OtherModelError(
                    f"{part} says {name!s:.60} {value!r:.60}, which may change the logits, and is not known"
                )
    norm = facts.get("norm_layer")
    if norm is not None and norm not in LAYER_NORMS:
        raise OtherModelError(f"its norm_layer is {norm!r:.60}, and this model's norms are LayerNorm")
    if "_rpn_" in str(facts.get("architecture")):
        raise OtherModelError("its blocks normalize after attention and MLP, this model's before (rpn)")
    _refuse_other_sizes(description.stated, tensors)
    if (kind := description.model_type) in {"", *MODEL_TYPES}:
        return []
    return [f"its steps are those of a ViT (the model type {kind!r:.60} is not known here)"]


def _refuse_other_sizes(stated: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse a description of another model: its own library would build what it states."""
    patches = tensors["patch_embedding.weight"]
    sizes = dict.fromkeys(("hidden_size", "embed_dim"), patches.shape[0])
    sizes |= dict.fromkeys(("num_hidden_layers", "depth"), len(list_blocks(tensors)))
    for name, found in (sizes | {"patch_size": patches.shape[-1]}).items():
        value = stated.get(name)
        if isinstance(value, (list, tuple)) and len(set(map(str, value))) == 1:
            value = value[0]
        if value is not None and value != found:
            raise ConfigError(f"its description says {name} {value!r:.60}, its tensors {found}")


def list_blocks(tensors: Tensors) -> list[str]:
    """Return the numbers of the blocks, in their order, of tensors with the names of `vit.model`."""
    return sorted({name.split(".")[1] for name in tensors if name.startswith("blocks.")}, key=int)


def check_pooling(description: Description, tensors: Tensors, found: tuple[str, str]) -> tuple[str, str]:
    """Return the pooling and the place of the last norm, if the tensors fit the description."""
    pool = description.facts.get("global_pool")
    pool = {True: "avg", False: "token"}[pool] if isinstance(pool, bool) else pool  # MAE's script
    prefix = [name for name in ("class_token", "registers", "distillation") if name in tensors]
    if pool == "token" and "fc_norm.weight" in tensors and "class_token" in tensors:
        return "class", "before"  # the norm of one token is the same before and after it is taken
    if pool == "" and "head.weight" in tensors:
        raise OtherModelError("its head scores every token (global_pool is ''), this model's the whole image")
    if pool not in (None, "") and found[0] not in POOLINGS.get(str(pool), ()):
        raise OtherModelError(
            f"its pooling {pool!r:.60} is not one that this model knows, or not that of its tensors; known: "
            f"{', '.join(POOLINGS)}"
        )
    whole = bool(description.facts.get("pool_include_prefix"))
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
