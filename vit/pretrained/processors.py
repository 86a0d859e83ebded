"""Image processors of transformers whose pixels are what their fields say, and the meaning of each field.

A processor is a class: its code can do more than its fields say, as many do. So only those are followed whose
pixels were compared with transformers' own (tests/vit/pretrained/test_processors.py); every other type, and
every field that no type here has, is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit.pretrained.documents import SourceError

Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
SQUARE: Mapping[str, int] = {"height": 224, "width": 224}
_CLIP = {"resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}
_CLIP |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "default_to_square": False}
_MOBILE = {"resample": 2, "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": SQUARE}
_MOBILE |= {"default_to_square": False}
# What each type takes where the file says null or nothing; `default_to_square` says what a lone number is.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"resample": 2, "size": SQUARE},
    "DeiT": {
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": SQUARE,
    },
    "Beit": {"resample": 3, "size": SQUARE, "crop_size": SQUARE},
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": {"resample": 3, "size": SQUARE, "default_to_square": False},
    "Blip": {"resample": 3, "size": {"height": 384, "width": 384}}
    | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "ConvNext": {
        "resample": 3,
        "size": {"shortest_edge": 384},
        "crop_pct": 224 / 256,
        "default_to_square": False,
    },
    "DINOv3ViT": {"resample": 2, "size": SQUARE} | IMAGENET,
    "Pvt": {"resample": 3, "size": SQUARE} | IMAGENET,
    "Segformer": {"resample": 2, "size": {"height": 512, "width": 512}} | IMAGENET,
    "Levit": {"resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}
    | {"default_to_square": False}
    | IMAGENET,
    "MobileNetV1": _MOBILE,
    "MobileNetV2": _MOBILE,
    "EfficientNet": {
        "resample": 3,
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "include_top": True,
        "rescale_offset": False,
    },
}
# The processor of a model type, where the file names none: transformers looks it up in the same way.
_TYPES = {
    "ViT": "vit vit_mae vit_msn ijepa swin swinv2 dinat swiftformer",
    "DeiT": "deit",
    "Beit": "beit data2vec-vision",
    "CLIP": "clip clip_vision_model metaclip_2",
    "Bit": "bit dinov2 dinov2_with_registers focalnet hiera",
    "Siglip": "siglip siglip_vision_model",
    "Blip": "blip",
    "ConvNext": "convnext convnextv2 cvt regnet resnet",
    "DINOv3ViT": "dinov3_vit",
    "Pvt": "pvt pvt_v2",
    "Segformer": "segformer",
    "Levit": "levit",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "EfficientNet": "efficientnet",
}
MODEL_TYPES: Mapping[str, str] = {model: kind for kind, models in _TYPES.items() for model in models.split()}
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "default_to_square")
FIELDS = (*SWITCHES, "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
UNCUT = ("DINOv3ViT", "Segformer")  # types that do not read do_center_crop
OWN = {"ConvNext": ("crop_pct",), "EfficientNet": ("include_top", "rescale_offset")}
# Fields that change no pixel: names, the form of the output, and what is done to labels of segmentation.
HARMLESS = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "transformers_version",
    "model_type",
    "use_fast",
    "_valid_processor_keys",
    "do_convert_rgb",
    "do_reduce_labels",
    "reduce_labels",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "pad_size",
    "image_seq_length",
    "num_channels",
)
WAY = (
    "describe the same pixels by the fields of a ViTImageProcessor, or export the model to ONNX and describe "
    "it with `python -m export --onnx MODEL.onnx --preprocess SPEC.json`"
)
BGR = (
    "it flips the channels to blue, green, red, and models here take red, green, blue; swap the input "
    "channels of the first convolution"
)
MEANINGS = {
    "do_flip_channel_order": f"{BGR}, and set the field to false",
    "do_flip_channels": f"{BGR}, and set the field to false",
    "auto_map": f"its pixels are made by code of its own; {WAY}",
}


def read_fields(document: Mapping[str, Any], model_type: str = "") -> tuple[str, dict[str, Any], list[str]]:
    """Return the type of an image processor, its fields with the type's defaults, and notes.

    Args:
        document: preprocessor_config.json.
        model_type: of config.json; it names the processor where the document does not.

    Raises:
        SourceError: for a type or field whose pixels are not known here, and values that make no sense.
    """
    kind, notes = kind_of(document, model_type)
    allowed = (*FIELDS, *HARMLESS, *OWN.get(kind, ()))
    for name, value in document.items():
        if name not in allowed and value is not None and value is not False:
            meaning = MEANINGS.get(name, f"no {kind}ImageProcessor is known to have this field; {WAY}")
            raise SourceError(f"{name} is {value!r:.60}, and cannot be followed here: {meaning}")
    said = {name: value for name, value in document.items() if value is not None}
    known: dict[str, Any] = {"image_mean": HALF, "image_std": HALF, **DEFAULTS[kind], **said}
    for name in (*SWITCHES, "include_top", "rescale_offset"):
        if not isinstance(known.get(name, False), bool):
            raise SourceError(f"{name} is {known[name]!r:.60}, expected true or false")
    if kind in UNCUT and known.get("do_center_crop"):
        raise SourceError(f"do_center_crop is true, and a {kind}ImageProcessor cuts nothing; {WAY}")
    return kind, known, notes


def kind_of(document: Mapping[str, Any], model_type: str) -> tuple[str, list[str]]:
    """Return the type without its endings, and a sentence where it is assumed.

    Raises:
        SourceError: for a type that is not among those that are followed.
    """
    said = document.get("image_processor_type") or document.get("feature_extractor_type")
    if said is None and not model_type:
        return "ViT", ["the steps of a ViTImageProcessor (no image_processor_type says which)"]
    if said is None and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type], []
    if said is None:
        raise SourceError(
            f"no image_processor_type says how images are prepared, and that of the model type "
            f"{model_type!r:.60} is not known here; {WAY}"
        )
    kind = str(said)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in DEFAULTS:
        if kind == "MobileViT":
            raise SourceError(f"the image processor {str(said)!r:.60}: {BGR}, and {WAY}")
        raise SourceError(
            f"the image processor {str(said)!r:.60} may have steps that its fields do not say; known are "
            f"{', '.join(DEFAULTS)}; {WAY}"
        )
    return kind, []


def whole(value: Any, name: str) -> int:
    """Return a number of pixels from a document.

    Raises:
        SourceError: for anything but a whole number from 1.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SourceError(f"{name} is {value!r:.60}, expected a whole number of pixels from 1")
    return value


def number(value: Any, name: str, *, above: float = -math.inf) -> float:
    """Return a finite number from a document.

    Raises:
        SourceError: for anything else, or a number that is not above `above`.
    """
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not abs(value) < 1e30 or value <= above:
        least = "" if above == -math.inf else f" above {above:g}"
        raise SourceError(f"{name} is {value!r:.60}, expected a number{least}")
    return float(value)


def triple(values: Any, name: str, *, above: float = -math.inf) -> Triple:
    """One number per channel; a single one stands for all three.

    Raises:
        SourceError: for anything else than one or three numbers above `above`.
    """
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(listed) not in (1, 3):
        raise SourceError(f"{name} is {values!r:.60}, expected a number per channel: red, green, blue")
    numbers = [number(value, name, above=above) for value in listed]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue
