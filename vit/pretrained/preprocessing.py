"""What a model from elsewhere wants to see: read where the source says it, else assumed and said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.preprocess import Interpolation, Preprocess
from runtime.text import flaw
from vit.pretrained.documents import SourceError
from vit.pretrained.formats import GOOGLE, HUGGING_FACE, TIMM, TORCHVISION, Format

Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
PILLOW: tuple[Interpolation, ...] = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # its numbers


@dataclass(frozen=True)
class View:
    """Preprocessing and normalisation; the preprocessing's size is set once the model's is known."""

    preprocess: Preprocess
    mean: Triple
    std: Triple
    assumed: tuple[str, ...] = ()


def view_of(form: Format, config: Mapping[str, Any], preprocessor: Mapping[str, Any], file: Path) -> View:
    try:
        if preprocessor:
            return from_preprocessor(preprocessor)
        if timm := config.get("pretrained_cfg"):
            return from_timm(timm)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError(
            f"{file.parent}: the description of the preprocessing makes no sense ({flaw(error)})"
        ) from error
    return assumed_view(form, file)


def from_preprocessor(document: Mapping[str, Any]) -> View:
    """Hugging Face's preprocessor_config.json."""
    size = document.get("size", 224)
    crop = edges(document.get("crop_size", size)) if document.get("do_center_crop") else None
    interpolation = PILLOW[int(document.get("resample", 2))]
    assumed: list[str] = []
    if crop is None:
        preprocess = Preprocess(size=edges(size), resize="stretch", interpolation=interpolation)
    else:
        if isinstance(size, Mapping) and "height" in size:
            assumed.append("images scaled with their shape kept before the crop (the source stretches them)")
        shorter = max(min(edges(size)), max(crop))
        preprocess = Preprocess(size=crop, resize="crop", resize_to=shorter, interpolation=interpolation)
    if not document.get("do_normalize", True):
        return View(preprocess, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), tuple(assumed))
    mean, std = document.get("image_mean", HALF), document.get("image_std", HALF)
    return View(preprocess, triple(mean), triple(std), tuple(assumed))


def from_timm(document: Mapping[str, Any]) -> View:
    """The pretrained_cfg in a timm folder's config.json."""
    _, height, width = document["input_size"]
    shorter = max(int(max(height, width) / float(document.get("crop_pct", 0.9))), max(height, width))
    interpolation = document.get("interpolation", "bicubic")
    if document.get("crop_mode", "center") == "squash":
        preprocess = Preprocess(size=(height, width), resize="stretch", interpolation=interpolation)
    else:
        preprocess = Preprocess(
            size=(height, width), resize="crop", resize_to=shorter, interpolation=interpolation
        )
    return View(preprocess, triple(document["mean"]), triple(document["std"]))


def assumed_view(form: Format, file: Path) -> View:
    """What models of this kind mostly want."""
    if form is TORCHVISION or (form is TIMM and "deit" in file.name.lower()):
        interpolation: Interpolation = "bilinear" if form is TORCHVISION else "bicubic"
        preprocess = Preprocess(resize="crop", resize_to=256, interpolation=interpolation)
        how = f"shorter edge to 8/7 of the input, {interpolation}, centre crop; ImageNet's mean and deviation"
        return View(preprocess, IMAGENET_MEAN, IMAGENET_STD, (how,))
    if form is TIMM:
        preprocess = Preprocess(resize="crop", resize_to=248, interpolation="bicubic")
        how = "shorter edge to 1/0.9 of the input, bicubic, centre crop; mean and deviation 0.5"
        return View(preprocess, HALF, HALF, (how,))
    assert form in (HUGGING_FACE, GOOGLE)
    how = "images stretched to the input, bilinear; mean and deviation 0.5"
    return View(Preprocess(resize="stretch", interpolation="bilinear"), HALF, HALF, (how,))


def edges(size: Any) -> tuple[int, int]:
    """(height, width) of any of the ways in which Hugging Face writes a size."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)


def triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
