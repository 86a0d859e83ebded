"""Small models that other libraries build and save, with random weights: what tools/families.py imports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.beside_torch import import_timm, import_torchvision
from tools.lively import lively

SIZE, PATCH, CLASSES = 48, 16, 7
Forward = Callable[[Tensor], Tensor]  # normalized [N, 3, H, W] to logits


def transformers_model(config: str, model: str, **changes: Any) -> Callable[[Path], Forward]:
    """Build a model of transformers; `vision=True` puts its config inside that of a two-tower model."""

    def build(folder: Path) -> Forward:
        import transformers

        width = 64
        common = dict(hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
        outer = changes.pop("outer", None) if "outer" in changes else OUTER.get(model)
        made = getattr(transformers, config)(
            **common, image_size=SIZE, patch_size=PATCH, num_labels=CLASSES, **changes
        )
        if outer is not None:
            made = getattr(transformers, outer)(vision_config=made.to_dict(), num_labels=CLASSES)
        theirs = lively(lambda: getattr(transformers, model)(made), strength=1.0)
        theirs.save_pretrained(folder)

        def forward(images: Tensor) -> Tensor:
            found = theirs(images)
            if hasattr(found, "logits"):
                return found.logits  # type: ignore[no-any-return]
            pooled = found.pooler_output if model in POOLED else found.last_hidden_state[:, 0]
            return pooled  # type: ignore[no-any-return]

        return forward

    return build


OUTER = {"CLIPForImageClassification": "CLIPConfig", "SiglipForImageClassification": "SiglipConfig"}
POOLED = ("SiglipVisionModel", "CLIPVisionModel")


def timm_model(architecture: str, **changes: Any) -> Callable[[Path], Forward]:
    """Build a small model of timm's architecture and save it as timm does for the Hub."""

    def build(folder: Path) -> Forward:
        timm = import_timm()
        small = dict(img_size=SIZE, embed_dim=64, depth=2, num_heads=4, num_classes=CLASSES)
        arguments = small | changes
        theirs = lively(lambda: timm.create_model(architecture, **arguments), strength=1.0)
        from timm.models import save_for_hf

        save_for_hf(theirs, str(folder), model_args=arguments)
        return theirs

    return build


def torchvision_model(folder: Path) -> Forward:
    """Build torchvision's own class, and save its state dict."""
    import_torchvision()
    from torchvision.models import VisionTransformer

    theirs = lively(lambda: VisionTransformer(SIZE, PATCH, 2, 4, 64, 96, num_classes=CLASSES), strength=1.0)
    torch.save(theirs.state_dict(), folder / "vit.pth")
    return theirs
