"""Preprocessing of an imported model, as its source describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.images.preprocess import Interpolation, Preprocess, Resize
from vit.pretrained.documents import SourceError
from vit.pretrained.formats import TIMM, TORCHVISION, Format
from vit.pretrained.processors import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    WAY,
    Triple,
    number,
    read_fields,
    triple,
    whole,
)

# --- Preprocessing of an imported model, as its source describes it ---


Size = tuple[int, int]  # (height, width)
# Pillow's numbers.
PILLOW: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


@dataclass(frozen=True)
class View:
    """Resizing and normalization; the pixels are settled once the model's own size is known.

    `size` is what the source names, or None; `kept` is the share of the resized image that the crop keeps.
    """

    resize: Resize
    interpolation: Interpolation
    mean: Triple = HALF
    std: Triple = HALF
    size: Size | None = None
    kept: tuple[float, float] | None = None  # of the height and of the width
    edge: int | None = None  # the shorter edge before the crop, where the source names it
    by_input: bool = False  # whether `size` may change the model's (transformers) or not (timm)
    assumed: tuple[str, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        """The view at the size that the source names, or at 224 pixels."""
        return self.sized(self.size or (224, 224))

    def sized(self, size: Size) -> Preprocess:
        """The view in pixels, of a model for `size`."""
        edge: int | Size | None = None
        if self.edge is not None and self.size is not None:
            edge = max(self.edge * max(size) // max(self.size), max(size))
        elif self.kept is not None:
            # Rounded down as timm does; the small number keeps 64 / (64 / 73) from being 72.
            down, across = (max(int(a / b + 1e-6), a) for a, b in zip(size, self.kept, strict=True))
            edge = down if down == across and self.resize == "crop" else (down, across)
            edge = None if edge == size else edge
        return Preprocess(size=size, resize=self.resize, resize_to=edge, interpolation=self.interpolation)


def from_preprocessor(document: Mapping[str, Any], model_type: str = "") -> View:
    """Hugging Face's preprocessor_config.json, as transformers reads it.

    Args:
        document: the fields.
        model_type: of config.json, which names the processor where the document does not.

    Raises:
        SourceError: for a type, field or value that cannot be followed.
    """
    kind, known, notes = read_fields(document, model_type)
    view, more = geometry(kind, known)
    mean, std = normalization(known)
    view = replace(view, mean=mean, std=std, by_input=True, assumed=(*notes, *more))
    check_pixels(view)
    return view


def normalization(known: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Return mean and deviation for pixels in 0..1: transformers has (pixel · rescale - mean) / deviation."""
    rescale = known.get("do_rescale", True)
    unit = 255 * (number(known.get("rescale_factor", 1 / 255), "rescale_factor", above=0) if rescale else 1.0)
    unit = 1.0 if abs(unit - 1) < 1e-9 else unit
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    said = triple(known["image_std"], "image_std", above=0)
    if known.get("do_normalize", True):
        mean, std = triple(known["image_mean"], "image_mean"), said
    if rescale and known.get("rescale_offset"):  # EfficientNet: pixel · rescale - 1
        mean = triple([value + 1 for value in mean], "image_mean")
    if known.get("include_top"):  # EfficientNet divides by the deviation once more
        std = triple([a * b for a, b in zip(std, said, strict=True)], "image_std")
    return (
        triple([value / unit for value in mean], "image_mean"),
        triple([value / unit for value in std], "image_std", above=0),
    )


def geometry(kind: str, known: Mapping[str, Any]) -> tuple[View, list[str]]:
    """Return the resizing and cropping of a processor of transformers, and notes on differences from it."""
    interpolation = filter_of(known["resample"])
    size: Any = known["size"]
    if isinstance(size, int) and not isinstance(size, bool) and not known.get("default_to_square", True):
        size = {"shortest_edge": size}
    crop = edges(known.get("crop_size", size), "crop_size") if known.get("do_center_crop") else None
    if not known.get("do_resize", True):
        if crop is not None:
            raise SourceError(
                "do_resize is false and do_center_crop true: the middle of the image is cut out at its own "
                f"size, which cannot be followed here; {WAY}"
            )
        stretched = (
            "images of other sizes are stretched to the input (the source takes none, do_resize is false)"
        )
        return View("stretch", interpolation), [stretched]
    shortest = shortest_edge(size)
    if kind == "ConvNext":
        return convnext(interpolation, shortest, crop, number(known["crop_pct"], "crop_pct", above=0)), []
    if shortest is None:
        return stretched_and_cut(interpolation, edges(size, "size"), crop), []
    shortest = int(256 / 224 * shortest) if kind == "Levit" else shortest
    notes = []
    if crop is None:
        notes.append("the middle square of an image (the source keeps the whole, whatever its shape)")
        crop = shortest, shortest
    if max(crop) > shortest:
        raise SourceError(
            f"crop_size {crop} is larger than shortest_edge {shortest}: the border would be black"
        )
    return View("crop", interpolation, size=crop, edge=shortest), notes


def convnext(interpolation: Interpolation, shortest: int | None, crop: Size | None, percent: float) -> View:
    """ConvNext's rule: below 384 pixels a share of the resized image is kept, from there on all of it."""
    if shortest is None or crop is not None:
        raise SourceError("a ConvNextImageProcessor has size.shortest_edge and no crop_size of its own")
    if shortest >= 384:
        return View("stretch", interpolation, size=(shortest, shortest))
    if percent > 1:
        raise SourceError(f"crop_pct is {percent}, which pads the image, and cannot be followed here")
    return View("crop", interpolation, size=(shortest, shortest), edge=int(shortest / percent))


def stretched_and_cut(interpolation: Interpolation, size: Size, crop: Size | None) -> View:
    """Return the view of an image that is stretched to `size`, of which the middle `crop` is kept."""
    if crop is None or crop == size:
        return View("stretch", interpolation, size=size)
    kept = crop[0] / size[0], crop[1] / size[1]
    if max(kept) > 1:
        raise SourceError(f"crop_size {crop} is larger than size {size}: the border would be black")
    return View("stretch", interpolation, size=crop, kept=kept)


def filter_of(resample: Any) -> Interpolation:
    """Return the filter of Pillow's number."""
    if not isinstance(resample, int) or isinstance(resample, bool) or not 0 <= resample < len(PILLOW):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(PILLOW))
        raise SourceError(f"resample is {resample!r:.60}, expected one of {known}")
    return PILLOW[resample]


def shortest_edge(size: Any) -> int | None:
    """The length of the shorter edge, where the size means that; the shape is kept then."""
    if isinstance(size, Mapping) and size.get("shortest_edge") is not None:
        if size.get("longest_edge"):
            raise SourceError("size has a longest_edge, which cannot be followed here")
        return whole(size["shortest_edge"], "shortest_edge")
    return None


def from_timm(document: Any) -> View:
    """The pretrained_cfg in a timm folder's config.json, as timm's own transform for evaluation reads it.

    Raises:
        SourceError: for a field that cannot be followed, or a value that makes no sense.
    """
    if not isinstance(document, Mapping):
        raise SourceError(f"pretrained_cfg is {document!r:.60}, expected an object with input_size and mean")
    size: Any = document.get("input_size")
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        raise SourceError(f"input_size is {size!r:.60}, expected [channels, height, width]")
    if size[0] not in (1, 3):
        raise SourceError(
            f"input_size is {size!r:.60}: images of {size[0]!r:.20} channels, and this project's have three "
            "(red, green, blue); import a model of RGB images"
        )
    percent = number(document.get("crop_pct") or 0.875, "crop_pct", above=0)
    mode = document.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise SourceError(f"crop_mode {mode!r:.60} pads the image, which cannot be followed here")
    if percent > 1:
        raise SourceError(f"crop_pct is {percent}, which pads the image, and cannot be followed here")
    interpolation = document.get("interpolation") or "bicubic"
    if interpolation not in PILLOW:
        raise SourceError(f"interpolation is {interpolation!r:.60}, expected one of {', '.join(PILLOW)}")
    view = View(
        "stretch" if mode == "squash" else "crop",
        interpolation,
        triple(document.get("mean") or IMAGENET_MEAN, "mean"),
        triple(document.get("std") or IMAGENET_STD, "std", above=0),
        size=(whole(size[1], "input_size"), whole(size[2], "input_size")),
        kept=(percent, percent),
    )
    check_pixels(view)
    return view


def check_pixels(view: View) -> None:
    """Refuse sizes that no `Preprocess` has, before the model is built for them."""
    try:
        view.preprocess  # noqa: B018
    except ValueError as error:
        raise SourceError(f"size and crop make no possible preprocessing: {error}") from error


def edges(size: Any, name: str) -> Size:
    """(height, width) of any of the ways in which Hugging Face writes a size."""
    if isinstance(size, Mapping):
        if size.get("shortest_edge") is not None:
            edge = whole(size["shortest_edge"], "shortest_edge")
            return edge, edge
        if size.get("height") is None or size.get("width") is None:
            raise SourceError(
                f"{name} says {', '.join(map(str, size)) or 'nothing'}, expected height and width or "
                "shortest_edge"
            )
        return whole(size["height"], name), whole(size["width"], name)
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return whole(size[0], name), whole(size[1], name)
    return whole(size, name), whole(size, name)


# --- The view of a model: what its source describes, or what such models usually want, reported as assu---


_DINOV2 = {"image_processor_type": "Bit", "size": {"shortest_edge": 256}} | IMAGENET
# Model type of transformers → the preprocessor_config.json that its published models come with.
USUAL: Mapping[str, Mapping[str, Any]] = {
    "deit": {"image_processor_type": "DeiT"} | IMAGENET,
    "beit": {"image_processor_type": "Beit"},
    "data2vec-vision": {"image_processor_type": "Beit"},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": {"image_processor_type": "DINOv3ViT"},
    "vit_msn": {"image_processor_type": "ViT"} | IMAGENET,
    "clip": {"image_processor_type": "CLIP"},
    "metaclip_2": {"image_processor_type": "CLIP"},
    "siglip": {"image_processor_type": "Siglip"},
}
# Names of files whose models were trained with ImageNet's mean: of DeiT, DINO, DINOv2, MAE, MoCo and iBOT.
BY_IMAGENET = re.compile(r"deit|dino|(?<![a-z])mae|moco|ibot")


def view_of(form: Format, config: Mapping[str, Any], preprocessor: Mapping[str, Any], file: Path) -> View:
    """Read preprocessor_config.json or timm's pretrained_cfg; else assume what such models mostly want.

    Raises:
        SourceError: when the description makes no sense or asks for what no `Preprocess` can do.
    """
    model_type = str(config.get("model_type") or "")
    try:
        if preprocessor:
            return from_preprocessor(preprocessor, model_type)
        if timm := config.get("pretrained_cfg"):
            return from_timm(timm)
    except SourceError as error:
        raise SourceError(f"{file.parent}: the preprocessing cannot be followed ({error})") from error
    model_type = model_type.removesuffix("_vision_model")
    return usual_view(model_type) if model_type in USUAL else assumed_view(form, file)


def usual_view(model_type: str) -> View:
    """Return the view of a model type's published models, whatever size they have."""
    view = from_preprocessor(USUAL[model_type])
    size = view.size or (224, 224)
    kept = view.kept if view.edge is None else (size[0] / view.edge, size[1] / view.edge)
    kept = None if kept == (1, 1) else kept
    how = "images stretched to the input" if view.resize == "stretch" else "shorter edge to the input"
    if kept is not None:
        how += f" and beyond, of which the middle {kept[0]:.1%} is kept"
    mean = ", ".join(f"{value:.3g}" for value in view.mean)
    said = f"{how}, {view.interpolation}; mean {mean}, as published models of the type {model_type} want it"
    return replace(view, size=None, edge=None, kept=kept, by_input=False, assumed=(said,))


def assumed_view(form: Format, file: Path) -> View:
    """Return the usual preprocessing of models of this format, and of the name of the file."""
    name = file.name.lower()
    if form is TORCHVISION or (form is TIMM and BY_IMAGENET.search(name)):
        kind: Any = "bilinear" if form is TORCHVISION else "bicubic"
        how = f"shorter edge to 8/7 of the input, {kind}, center crop; ImageNet's mean and deviation"
        return View("crop", kind, IMAGENET_MEAN, IMAGENET_STD, kept=(7 / 8, 7 / 8), assumed=(how,))
    if form is TIMM and "clip" in name:
        how = "shorter edge to 1/0.9 of the input, bicubic, center crop; CLIP's mean and deviation"
        return View("crop", "bicubic", CLIP_MEAN, CLIP_STD, kept=(0.9, 0.9), assumed=(how,))
    if form is TIMM:
        how = "shorter edge to 1/0.9 of the input, bicubic, center crop; mean and deviation 0.5"
        return View("crop", "bicubic", kept=(0.9, 0.9), assumed=(how,))
    how = "images stretched to the input, bilinear; mean and deviation 0.5"
    return View("stretch", "bilinear", assumed=(how,))
