"""Preprocessing of an imported model, as its source describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.images.preprocess import Interpolation, Preprocess, Resize

Triple = tuple[float, float, float]
Size = tuple[int, int]  # (height, width)
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers.
PILLOW: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
SQUARE: Mapping[str, int] = {"height": 224, "width": 224}
# What transformers' processors take where the file says null or nothing.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"resample": 2, "size": SQUARE},
    "DeiT": {
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": SQUARE,
    },
    "Beit": {"resample": 3, "size": SQUARE, "crop_size": SQUARE},
    "CLIP": {"resample": 3, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}
    | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    "Siglip": {"resample": 3, "size": SQUARE},
    "ConvNext": {"resample": 3, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "DINOv3ViT": {"resample": 2, "size": SQUARE, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "Pvt": {"resample": 3, "size": SQUARE, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
}
DEFAULTS = {**DEFAULTS, "Bit": DEFAULTS["CLIP"]}
# What would change the pixels in a way that a `Preprocess` cannot say, when it is true.
UNKNOWN = (
    "do_pad",
    "do_flip_channel_order",
    "do_flip_channels",
    "do_grayscale",
    "do_thumbnail",
    "rescale_offset",
)


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


def from_preprocessor(document: Mapping[str, Any]) -> View:
    """Hugging Face's preprocessor_config.json, as transformers reads it."""
    kind = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "ViT")
    kind = (
        kind.removesuffix("Fast")
        .removesuffix("Pil")
        .removesuffix("ImageProcessor")
        .removesuffix("FeatureExtractor")
    )
    said = {name: value for name, value in document.items() if value is not None}
    known = {**DEFAULTS.get(kind, DEFAULTS["ViT"]), **said}
    if refused := [name for name in UNKNOWN if known.get(name)]:
        raise ValueError(f"{refused[0]} is {known[refused[0]]!r}, and cannot be followed here")
    view, notes = geometry(known)
    if kind not in DEFAULTS and any(
        document.get(name) is None for name in ("size", "image_mean", "image_std")
    ):
        notes.append(f"the defaults of a ViTImageProcessor for what a {kind}ImageProcessor leaves out")
    rescale = float(known.get("rescale_factor", 1 / 255)) if known.get("do_rescale", True) else 1.0
    mean, std = HALF, HALF
    if known.get("do_normalize", True):
        mean, std = triple(known.get("image_mean", HALF)), triple(known.get("image_std", HALF))
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # transformers: (pixel · rescale - mean) / std; here: (pixel / 255 - mean) / std.
    unit = rescale * 255
    red, green, blue = (value / unit if unit != 1 else value for value in mean)
    deviation = triple([value / unit if unit != 1 else value for value in std])
    return replace(view, mean=(red, green, blue), std=deviation, by_input=True, assumed=tuple(notes))


def geometry(known: Mapping[str, Any]) -> tuple[View, list[str]]:
    """Return the resizing and cropping of transformers, and notes on differences from it."""
    interpolation = PILLOW[int(known["resample"])]
    size, notes = known["size"], []
    crop = edges(known.get("crop_size", size)) if known.get("do_center_crop") else None
    if not known.get("do_resize", True):
        notes.append(
            "images of other sizes are stretched to the input (the source takes none, do_resize is false)"
        )
        return View("stretch", interpolation, size=crop), notes
    shortest = shortest_edge(size)
    if shortest is None:
        size = edges(size)
        if crop is None or crop == size:
            return View("stretch", interpolation, size=size), notes
        kept = crop[0] / size[0], crop[1] / size[1]
        if max(kept) > 1:
            raise ValueError(f"crop_size {crop} is larger than size {size}: the border would be black")
        return View("stretch", interpolation, size=crop, kept=kept), notes
    percent = known.get("crop_pct")
    if percent is not None and crop is None and shortest < 384:  # ConvNext's rule
        return View("crop", interpolation, size=(shortest, shortest), edge=int(shortest / percent)), notes
    if percent is not None and crop is None:
        return View("stretch", interpolation, size=(shortest, shortest)), notes
    if crop is None:
        notes.append("the middle square of an image (the source keeps the whole, whatever its shape)")
        crop = shortest, shortest
    if max(crop) > shortest:
        raise ValueError(
            f"crop_size {crop} is larger than shortest_edge {shortest}: the border would be black"
        )
    return View("crop", interpolation, size=crop, edge=shortest), notes


def shortest_edge(size: Any) -> int | None:
    """The length of the shorter edge, where the size means that; the shape is kept then."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if size.get("longest_edge"):
            raise ValueError("size has a longest_edge, which cannot be followed here")
        return int(size["shortest_edge"])
    return None


def from_timm(document: Mapping[str, Any]) -> View:
    """The pretrained_cfg in a timm folder's config.json, as timm's own transform for evaluation reads it."""
    _, height, width = document["input_size"]
    percent = float(document.get("crop_pct") or 0.875)
    mode = document.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode!r} pads the image, which cannot be followed here")
    return View(
        "stretch" if mode == "squash" else "crop",
        document.get("interpolation") or "bicubic",
        triple(document.get("mean") or IMAGENET_MEAN),
        triple(document.get("std") or IMAGENET_STD),
        size=(int(height), int(width)),
        kept=(percent, percent),
    )


def edges(size: Any) -> Size:
    """(height, width) of any of the ways in which Hugging Face writes a size."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
        if "height" not in size:
            raise ValueError(
                f"size says {', '.join(map(str, size))}, expected height and width or shortest_edge"
            )
        return int(size["height"]), int(size["width"])
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)


def triple(values: Any) -> Triple:
    """One number per channel; a single one stands for all three."""
    if isinstance(values, (int, float)):
        values = (values,) * 3
    values = tuple(values) * (3 if len(values) == 1 else 1)
    red, green, blue = (float(value) for value in values)
    return red, green, blue
