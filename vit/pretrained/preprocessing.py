"""Preprocessing of an imported model: what its source describes, or what such models usually take.

A processor of transformers is a class: its code can do more than its fields state, as many do. Only those are
followed whose pixels were compared with transformers' own (tests/vit/pretrained/test_processors.py); every
other type, and every field that no type here has, is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.images.preprocess import Interpolation, Preprocess, Resize
from vit.pretrained.description import (
    SourceError,
    Triple,
    as_fields,
    check_field,
    is_whole,
    parse_channels,
    parse_number,
    parse_whole,
)
from vit.pretrained.formats import TIMM, TORCHVISION, Format

Size = tuple[int, int]  # (height, width)
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
# In the order of Pillow's numbers.
PILLOW: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass(frozen=True)
class View:
    """Resizing and normalization; the size in pixels follows once the model's own is known."""

    resize: Resize
    interpolation: Interpolation
    mean: Triple = HALF
    std: Triple = HALF
    size: Size | None = None  # that the source names
    kept: tuple[float, float] | None = None  # share of the height and of the width that the crop keeps
    edge: int | None = None  # the shorter edge before the crop, where the source names it
    by_input: bool = False  # whether `size` may change the model's (transformers) or not (timm)
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            self.preprocess  # noqa: B018
        except ValueError as error:  # here, before the model is built for it
            raise SourceError(f"size and crop make no possible preprocessing: {error}") from error

    @property
    def preprocess(self) -> Preprocess:
        """The view at the size that the source names, or at 224 pixels."""
        return self.scale_to(self.size or (224, 224))

    def scale_to(self, size: Size) -> Preprocess:
        """Return the view in pixels, of a model for `size`."""
        edge: int | Size | None = None
        if self.edge is not None and self.size is not None:
            edge = max(self.edge * max(size) // max(self.size), max(size))
        elif self.kept is not None:
            # Rounded down as timm does; the small number keeps 64 / (64 / 73) from being 72.
            down, across = (max(int(a / b + 1e-6), a) for a, b in zip(size, self.kept, strict=True))
            edge = down if down == across and self.resize == "crop" else (down, across)
            edge = None if edge == size else edge
        return Preprocess(size=size, resize=self.resize, resize_to=edge, interpolation=self.interpolation)


def choose_view(form: Format, config: Mapping[str, Any], preprocessor: Mapping[str, Any], file: Path) -> View:
    """Read preprocessor_config.json or timm's pretrained_cfg; else assume what such models mostly take."""
    model_type = str(config.get("model_type") or "")
    timm = config.get("pretrained_cfg")
    try:
        if preprocessor or timm:
            return read_processor(preprocessor, model_type) if preprocessor else read_pretrained_cfg(timm)
    except SourceError as error:
        raise SourceError(f"{file.parent}: the preprocessing cannot be followed ({error})") from error
    model_type = model_type.removesuffix("_vision_model")
    return usual_view(model_type) if model_type in USUAL else _assume_view(form, file)


# --- timm ---


def read_pretrained_cfg(document: Any) -> View:
    """Read the pretrained_cfg in a timm folder's config.json, as timm's own transform for evaluation does.

    Args:
        document: its fields. Their size does not change the model's.

    Raises:
        SourceError: for a field that cannot be followed, or a value that makes no sense.
    """
    check_field("pretrained_cfg", document, isinstance(document, Mapping), "an object with input_size")
    size: Any = document.get("input_size")
    listed = isinstance(size, (list, tuple)) and len(size) == 3
    check_field("input_size", size, listed, "[channels, height, width]")
    if size[0] not in (1, 3):
        raise SourceError(
            f"input_size is {size!r:.60}: images of {size[0]!r:.20} channels, and this project's have three "
            "(red, green, blue); import a model of RGB images"
        )
    percent = _parse_crop_pct(document.get("crop_pct") or 0.875)
    mode = document.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise SourceError(f"crop_mode {mode!r:.60} pads the image, which cannot be followed here")
    interpolation = document.get("interpolation") or "bicubic"
    return View(
        "stretch" if mode == "squash" else "crop",
        check_field("interpolation", interpolation, interpolation in PILLOW, f"one of {', '.join(PILLOW)}"),
        parse_channels(document.get("mean") or IMAGENET_MEAN, "mean"),
        parse_channels(document.get("std") or IMAGENET_STD, "std", above=0),
        size=(parse_whole(size[1], "input_size"), parse_whole(size[2], "input_size")),
        kept=(percent, percent),
    )


def _parse_crop_pct(value: Any) -> float:
    percent = parse_number(value, "crop_pct", above=0)
    if percent > 1:
        raise SourceError(f"crop_pct is {percent}, which pads the image, and cannot be followed here")
    return percent


# --- transformers: the fields of a processor ---


IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
SQUARE: Mapping[str, int] = {"height": 224, "width": 224}
_EDGE: Mapping[str, Any] = {"size": {"shortest_edge": 224}, "default_to_square": False}
_CUT: Mapping[str, Any] = {"do_center_crop": True, "crop_size": SQUARE}
_BY_CLIP: Mapping[str, Any] = {"resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
_MOBILE = {**_EDGE, **_CUT, "resample": 2, "size": {"shortest_edge": 256}}
# What each type takes where the file has null or nothing; `default_to_square` is for a lone number.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"resample": 2, "size": SQUARE},
    "DeiT": {"resample": 3, "size": {"height": 256, "width": 256}, **_CUT},
    "Beit": {"resample": 3, "size": SQUARE, "crop_size": SQUARE},
    "CLIP": {**_BY_CLIP, **_EDGE, **_CUT},
    "Bit": {**_BY_CLIP, **_EDGE, **_CUT},
    "Siglip": {"resample": 3, "size": SQUARE, "default_to_square": False},
    "Blip": {**_BY_CLIP, "size": {"height": 384, "width": 384}},
    "ConvNext": {**_EDGE, "resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "DINOv3ViT": {"resample": 2, "size": SQUARE, **IMAGENET},
    "Pvt": {"resample": 3, "size": SQUARE, **IMAGENET},
    "Segformer": {"resample": 2, "size": {"height": 512, "width": 512}, **IMAGENET},
    "Levit": {**_EDGE, **_CUT, **IMAGENET, "resample": 3},
    "MobileNetV1": _MOBILE,
    "MobileNetV2": _MOBILE,
    "EfficientNet": {"resample": 3, "include_top": True, "rescale_offset": False}
    | {"size": {"height": 346, "width": 346}, "crop_size": {"height": 289, "width": 289}},
}
# The processor of a model type, where the file names none: transformers looks it up in the same way.
_TYPES = {
    "ViT": "vit vit_mae vit_msn ijepa swin swinv2 dinat swiftformer",
    "Beit": "beit data2vec-vision",
    "CLIP": "clip clip_vision_model metaclip_2",
    "Bit": "bit dinov2 dinov2_with_registers focalnet hiera",
    "Siglip": "siglip siglip_vision_model",
    "ConvNext": "convnext convnextv2 cvt regnet resnet",
    "DINOv3ViT": "dinov3_vit",
    "Pvt": "pvt pvt_v2",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
} | {kind: kind.lower() for kind in ("DeiT", "Blip", "Segformer", "Levit", "EfficientNet")}
PROCESSORS: Mapping[str, str] = {model: kind for kind, models in _TYPES.items() for model in models.split()}
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "default_to_square")
FIELDS = (*SWITCHES, "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
UNCUT = ("DINOv3ViT", "Segformer")  # types that do not read do_center_crop
OWN = {"ConvNext": ("crop_pct",), "EfficientNet": ("include_top", "rescale_offset")}
# Fields that change no pixel: names, the form of the output, and what is done to labels of segmentation.
_HARMLESS = (
    "image_processor_type feature_extractor_type processor_class transformers_version model_type use_fast "
    "_valid_processor_keys do_convert_rgb do_reduce_labels reduce_labels data_format input_data_format "
    "return_tensors device disable_grouping pad_size image_seq_length num_channels"
)
HARMLESS = frozenset(_HARMLESS.split())
ADVICE = (
    "describe the same pixels by the fields of a ViTImageProcessor, or export the model to ONNX and describe "
    "it with `python -m export --onnx MODEL.onnx --preprocess SPEC.json`"
)
BGR = (
    "it flips the channels to blue, green, red, and models here take red, green, blue; swap the input "
    "channels of the first convolution"
)
MEANINGS = {
    **dict.fromkeys(("do_flip_channel_order", "do_flip_channels"), f"{BGR}, and set the field to false"),
    "auto_map": f"its pixels are made by code of its own; {ADVICE}",
}


def read_processor(document: Mapping[str, Any], model_type: str = "") -> View:
    """Read preprocessor_config.json, as transformers does.

    Args:
        document: the fields.
        model_type: of config.json, which names the processor where the document does not.

    Returns:
        the view, whose size may change the model's.

    Raises:
        SourceError: for a type, field or value that cannot be followed.
    """
    kind, assumed = _choose_processor(document, model_type)
    allowed = (*FIELDS, *HARMLESS, *OWN.get(kind, ()))
    for name, value in document.items():
        if name not in allowed and value is not None and value is not False:
            meaning = MEANINGS.get(name, f"no {kind}ImageProcessor is known to have this field; {ADVICE}")
            raise SourceError(f"{name} is {value!r:.60}, and cannot be followed here: {meaning}")
    given = {name: value for name, value in document.items() if value is not None}
    fields: dict[str, Any] = {"image_mean": HALF, "image_std": HALF, **DEFAULTS[kind], **given}
    for name in (*SWITCHES, "include_top", "rescale_offset"):
        value = fields.get(name, False)
        check_field(name, value, isinstance(value, bool), "true or false")
    if kind in UNCUT and fields.get("do_center_crop"):
        raise SourceError(f"do_center_crop is true, and a {kind}ImageProcessor cuts nothing; {ADVICE}")
    view = _read_geometry(kind, fields)
    mean, std = _read_normalization(fields)
    return replace(view, mean=mean, std=std, by_input=True, assumed=(*assumed, *view.assumed))


def _choose_processor(document: Mapping[str, Any], model_type: str) -> tuple[str, list[str]]:
    """Return the type without its endings, and a sentence where it is assumed; refuse all others."""
    name = document.get("image_processor_type") or document.get("feature_extractor_type")
    if name is None and not model_type:
        return "ViT", ["the steps of a ViTImageProcessor (no image_processor_type says which)"]
    if name is None:
        if model_type not in PROCESSORS:
            what = f"that of the model type {model_type!r:.60} is not known here"
            raise SourceError(f"no image_processor_type says how images are prepared, and {what}; {ADVICE}")
        return PROCESSORS[model_type], []
    kind = str(name)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in DEFAULTS:
        steps = f" may have steps that its fields do not say; known are {', '.join(DEFAULTS)}; "
        steps = f": {BGR}, and " if kind == "MobileViT" else steps
        raise SourceError(f"the image processor {str(name)!r:.60}{steps}{ADVICE}")
    return kind, []


def _read_normalization(fields: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Return mean and deviation for pixels in 0..1: transformers has (pixel · rescale - mean) / deviation."""
    rescale = fields.get("do_rescale", True)
    factor = fields.get("rescale_factor", 1 / 255) if rescale else 1
    unit = 255 * parse_number(factor, "rescale_factor", above=0)
    unit = 1.0 if abs(unit - 1) < 1e-9 else unit
    mean, std = parse_channels(0, "image_mean"), parse_channels(1, "image_std")
    given = parse_channels(fields["image_std"], "image_std", above=0)
    if fields.get("do_normalize", True):
        mean, std = parse_channels(fields["image_mean"], "image_mean"), given
    if rescale and fields.get("rescale_offset"):  # EfficientNet: pixel · rescale - 1
        mean = parse_channels([value + 1 for value in mean], "image_mean")
    if fields.get("include_top"):  # EfficientNet divides by the deviation once more
        std = parse_channels([a * b for a, b in zip(std, given, strict=True)], "image_std")
    return (
        parse_channels([value / unit for value in mean], "image_mean"),
        parse_channels([value / unit for value in std], "image_std", above=0),
    )


def _read_geometry(kind: str, fields: Mapping[str, Any]) -> View:
    """Return the resizing and cropping of a processor, and what differs from it as assumed."""
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(PILLOW))
    resample: Any = fields["resample"]
    accepted = is_whole(resample, 0) and resample < len(PILLOW)
    interpolation = PILLOW[check_field("resample", resample, accepted, f"one of {known}")]
    size: Any = fields["size"]
    if is_whole(size, 0) and not fields.get("default_to_square", True):
        size = {"shortest_edge": size}
    crop = _parse_edges(fields.get("crop_size", size), "crop_size") if fields.get("do_center_crop") else None
    if not fields.get("do_resize", True):
        if crop is not None:
            cut = "the middle of the image is cut out at its own size, which cannot be followed here"
            raise SourceError(f"do_resize is false and do_center_crop true: {cut}; {ADVICE}")
        note = "images of other sizes are stretched to the input (the source takes none, do_resize is false)"
        return View("stretch", interpolation, assumed=(note,))
    shortest = as_fields(size).get("shortest_edge")
    if shortest is not None and size.get("longest_edge"):
        raise SourceError("size has a longest_edge, which cannot be followed here")
    shortest = None if shortest is None else parse_whole(shortest, "shortest_edge")
    if kind == "ConvNext":
        return _crop_as_convnext(interpolation, shortest, crop, fields["crop_pct"])
    if shortest is None:
        return _stretch_and_crop(interpolation, _parse_edges(size, "size"), crop)
    shortest = int(256 / 224 * shortest) if kind == "Levit" else shortest
    if crop is None:
        note = "the middle square of an image (the source keeps the whole, whatever its shape)"
        return View("crop", interpolation, size=(shortest, shortest), edge=shortest, assumed=(note,))
    if max(crop) > shortest:
        larger = f"crop_size {crop} is larger than shortest_edge {shortest}"
        raise SourceError(f"{larger}: the border would be black")
    return View("crop", interpolation, size=crop, edge=shortest)


def _crop_as_convnext(
    interpolation: Interpolation, shortest: int | None, crop: Size | None, kept: Any
) -> View:
    """Follow ConvNext's rule: below 384 pixels keep a share of the resized image, from there on all of it."""
    if shortest is None or crop is not None:
        raise SourceError("a ConvNextImageProcessor has size.shortest_edge and no crop_size of its own")
    if shortest >= 384:
        return View("stretch", interpolation, size=(shortest, shortest))
    return View("crop", interpolation, size=(shortest, shortest), edge=int(shortest / _parse_crop_pct(kept)))


def _stretch_and_crop(interpolation: Interpolation, size: Size, crop: Size | None) -> View:
    if crop is None or crop == size:
        return View("stretch", interpolation, size=size)
    kept = crop[0] / size[0], crop[1] / size[1]
    if max(kept) > 1:
        raise SourceError(f"crop_size {crop} is larger than size {size}: the border would be black")
    return View("stretch", interpolation, size=crop, kept=kept)


def _parse_edges(size: Any, name: str) -> Size:
    """Return (height, width) of any of the ways in which Hugging Face writes a size."""
    if isinstance(size, Mapping):
        names = ["shortest_edge"] * 2 if size.get("shortest_edge") is not None else ["height", "width"]
        if any(size.get(each) is None for each in names):
            given = ", ".join(map(str, size)) or "nothing"
            raise SourceError(f"{name} says {given}, expected height and width or shortest_edge")
        size = [size[each] for each in names]
    pair = size if isinstance(size, (list, tuple)) and len(size) == 2 else [size, size]
    return parse_whole(pair[0], name), parse_whole(pair[1], name)


# --- Usual preprocessing, where the source describes none; it is reported as assumed ---


# Model type of transformers → fields in which its published models differ from the processor's defaults.
USUAL: Mapping[str, Mapping[str, Any]] = {
    **{name: {} for name in ("beit", "data2vec-vision", "dinov3_vit", "clip", "metaclip_2", "siglip")},
    **{name: IMAGENET for name in ("deit", "vit_msn")},
    **{name: {"size": {"shortest_edge": 256}} | IMAGENET for name in ("dinov2", "dinov2_with_registers")},
}
# Names of files whose models were trained with ImageNet's mean: of DeiT, DINO, DINOv2, MAE, MoCo and iBOT.
BY_IMAGENET = re.compile(r"deit|dino|(?<![a-z])mae|moco|ibot")


def usual_view(model_type: str) -> View:
    """Return the view of a model type's published models, whatever size they have."""
    view = read_processor(USUAL[model_type], model_type)
    size = view.size or (224, 224)
    kept = view.kept if view.edge is None else (size[0] / view.edge, size[1] / view.edge)
    kept = None if kept == (1, 1) else kept
    how = "images stretched to the input" if view.resize == "stretch" else "shorter edge to the input"
    how += "" if kept is None else f" and beyond, of which the middle {kept[0]:.1%} is kept"
    mean = ", ".join(f"{value:.3g}" for value in view.mean)
    note = f"{how}, {view.interpolation}; mean {mean}, as published models of the type {model_type} take it"
    return replace(view, size=None, edge=None, kept=kept, by_input=False, assumed=(note,))


def _assume_view(form: Format, file: Path) -> View:
    """Return the usual preprocessing of models of this format, and of the name of the file."""
    name = file.name.lower()
    if form is TORCHVISION or (form is TIMM and BY_IMAGENET.search(name)):
        kind: Any = "bilinear" if form is TORCHVISION else "bicubic"
        how = f"shorter edge to 8/7 of the input, {kind}, center crop; ImageNet's mean and deviation"
        return View("crop", kind, IMAGENET_MEAN, IMAGENET_STD, kept=(7 / 8, 7 / 8), assumed=(how,))
    if form is not TIMM:
        how = "images stretched to the input, bilinear; mean and deviation 0.5"
        return View("stretch", "bilinear", assumed=(how,))
    what, mean, std = "mean and deviation 0.5", HALF, HALF
    if "clip" in name:
        what, mean, std = "CLIP's mean and deviation", CLIP_MEAN, CLIP_STD
    how = f"shorter edge to 1/0.9 of the input, bicubic, center crop; {what}"
    return View("crop", "bicubic", mean, std, kept=(0.9, 0.9), assumed=(how,))
