"""The view of a model: what its source describes, or what such models usually want, reported as assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit.pretrained.documents import SourceError
from vit.pretrained.formats import TIMM, TORCHVISION, Format
from vit.pretrained.preprocessing import (
    View,
    from_preprocessor,
    from_timm,
)
from vit.pretrained.processors import CLIP_MEAN, CLIP_STD, IMAGENET, IMAGENET_MEAN, IMAGENET_STD

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
