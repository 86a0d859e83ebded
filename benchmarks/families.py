"""Families of Vision Transformers that `python -m vit import` reads, each compared with its own library.

`python -m benchmarks.families` makes a small model of each family with random weights, saves it as its
library does, imports it, and prints the table of docs/guides/bring-weights.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.other_libraries import import_timm, import_torchvision, randomize_weights
from runtime.writing import temporary_folder

SIZE, PATCH, CLASSES = 48, 16, 7
OUTER = {"CLIPForImageClassification": "CLIPConfig", "SiglipForImageClassification": "SiglipConfig"}
POOLED = ("SiglipVisionModel", "CLIPVisionModel")
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
        theirs = randomize_weights(lambda: getattr(transformers, model)(made), strength=1.0)
        theirs.save_pretrained(folder)

        def forward(images: Tensor) -> Tensor:
            found = theirs(images)
            if hasattr(found, "logits"):
                return found.logits  # type: ignore[no-any-return]
            pooled = found.pooler_output if model in POOLED else found.last_hidden_state[:, 0]
            return pooled  # type: ignore[no-any-return]

        return forward

    return build


def timm_model(architecture: str, **changes: Any) -> Callable[[Path], Forward]:
    """Build a small model of timm's architecture and save it as timm does for the Hub."""

    def build(folder: Path) -> Forward:
        timm = import_timm()
        small = dict(img_size=SIZE, embed_dim=64, depth=2, num_heads=4, num_classes=CLASSES)
        arguments = small | changes
        theirs = randomize_weights(lambda: timm.create_model(architecture, **arguments), strength=1.0)
        from timm.models import save_for_hf

        save_for_hf(theirs, str(folder), model_args=arguments)
        return theirs

    return build


def torchvision_model(folder: Path) -> Forward:
    """Build torchvision's own class, and save its state dict."""
    import_torchvision()
    from torchvision.models import VisionTransformer

    theirs = randomize_weights(
        lambda: VisionTransformer(SIZE, PATCH, 2, 4, 64, 96, num_classes=CLASSES), strength=1.0
    )
    torch.save(theirs.state_dict(), folder / "vit.pth")
    return theirs


@dataclass(frozen=True)
class Family:
    """One family: how its library builds a small model, and what this project's model needs for it."""

    name: str
    library: str
    build: Callable[[Path], Forward]  # saves the model into the folder; returns its forward pass
    options: str = "none"  # fields of ViTConfig besides the paper's
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of import_model


FAMILIES = (
    Family("ViT", "transformers", transformers_model("ViTConfig", "ViTForImageClassification")),
    Family(
        "DeiT", "transformers", transformers_model("DeiTConfig", "DeiTForImageClassification"), "registers"
    ),
    Family(
        "DeiT, distilled",
        "transformers",
        transformers_model("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
        "registers, pooling class_and_last",
    ),
    Family("ViT-MSN", "transformers", transformers_model("ViTMSNConfig", "ViTMSNForImageClassification")),
    Family(
        "I-JEPA",
        "transformers",
        transformers_model("IJepaConfig", "IJepaForImageClassification"),
        "no class token, pooling mean",
    ),
    Family(
        "DINOv2",
        "transformers",
        transformers_model("Dinov2Config", "Dinov2ForImageClassification"),
        "layer_scale, pooling class_and_mean",
    ),
    Family(
        "DINOv2 giant's MLP",
        "transformers",
        transformers_model("Dinov2Config", "Dinov2ForImageClassification", use_swiglu_ffn=True),
        "gated, layer_scale, pooling class_and_mean",
    ),
    Family(
        "DINOv2 with registers",
        "transformers",
        transformers_model("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification"),
        "registers, layer_scale, pooling class_and_mean",
    ),
    Family(
        "DINOv3 (features)",
        "transformers",
        transformers_model("DINOv3ViTConfig", "DINOv3ViTModel", num_register_tokens=3),
        "rotary, registers, layer_scale",
    ),
    Family(
        "DINOv3, gated (features)",
        "transformers",
        transformers_model("DINOv3ViTConfig", "DINOv3ViTModel", use_gated_mlp=True, hidden_act="silu"),
        "rotary, gated, layer_scale",
    ),
    Family(
        "BEiT",
        "transformers",
        transformers_model("BeitConfig", "BeitForImageClassification", use_relative_position_bias=True),
        "attention_bias, layer_scale, pooling mean, final_norm after",
    ),
    Family(
        "Data2Vec",
        "transformers",
        transformers_model(
            "Data2VecVisionConfig",
            "Data2VecVisionForImageClassification",
            use_shared_relative_position_bias=True,
        ),
        "attention_bias, layer_scale, pooling mean, final_norm after",
    ),
    Family(
        "CLIP, classifier",
        "transformers",
        transformers_model("CLIPVisionConfig", "CLIPForImageClassification"),
        "pre_norm, quick_gelu, pooling mean, final_norm none",
    ),
    Family(
        "CLIP (features)",
        "transformers",
        transformers_model("CLIPVisionConfig", "CLIPVisionModel"),
        "pre_norm, quick_gelu",
    ),
    Family(
        "SigLIP, classifier",
        "transformers",
        transformers_model("SiglipVisionConfig", "SiglipForImageClassification"),
        "no class token, pooling mean",
    ),
    Family(
        "SigLIP (features)",
        "transformers",
        transformers_model("SiglipVisionConfig", "SiglipVisionModel"),
        "no class token, pooling attention",
    ),
    Family("ViT", "timm", timm_model("vit_tiny_patch16_224")),
    Family("DeiT", "timm", timm_model("deit_tiny_patch16_224")),
    Family(
        "DeiT, distilled",
        "timm",
        timm_model("deit_tiny_distilled_patch16_224"),
        "registers, pooling class_and_last",
    ),
    Family("DeiT III", "timm", timm_model("deit3_small_patch16_224"), "layer_scale"),
    Family(
        "MAE, fine-tuned",
        "timm",
        timm_model("vit_base_patch16_224", global_pool="avg"),
        "pooling mean, final_norm after",
    ),
    Family(
        "ViT without a class token",
        "timm",
        timm_model("vit_base_patch16_224", class_token=False, global_pool="avg", fc_norm=False),
        "no class token, pooling mean",
    ),
    Family(
        "ViT with registers",
        "timm",
        timm_model("vit_tiny_patch16_224", reg_tokens=3),
        "registers",
    ),
    Family(
        "DINOv2 with registers",
        "timm",
        timm_model("vit_small_patch14_reg4_dinov2", patch_size=PATCH),
        "registers, layer_scale",
    ),
    Family(
        "DINOv2 giant",
        "timm",
        timm_model("vit_giant_patch14_dinov2", patch_size=PATCH, mlp_ratio=4),
        "gated, layer_scale",
    ),
    Family("CLIP", "timm", timm_model("vit_base_patch16_clip_quickgelu_224"), "pre_norm, quick_gelu"),
    Family("ViT-22B's norms", "timm", timm_model("vit_tiny_patch16_224", qk_norm=True), "qk_norm"),
    Family("SigLIP", "timm", timm_model("vit_base_patch16_siglip_224"), "no class token, pooling attention"),
    Family(
        "SigLIP, averaged",
        "timm",
        timm_model("vit_base_patch16_siglip_gap_224"),
        "no class token, pooling mean",
    ),
    Family(
        "BEiT v2",
        "timm",
        timm_model("beitv2_base_patch16_224"),
        "attention_bias, layer_scale, pooling mean, final_norm after",
    ),
    Family("ViT", "torchvision", torchvision_model, arguments={"heads": 4}),
)


def parity(family: Family, folder: Path) -> float:
    """Return the largest difference of logits over their scale, between library and imported model."""
    from vit.pretrained import import_model

    theirs = family.build(folder)
    ours = import_model(folder, **family.arguments).model
    random = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (3, *ours.config.image_size, 3), dtype=torch.uint8, generator=random)
    with torch.inference_mode():
        expected, found = theirs(ours.normalize(pixels)), ours(pixels)
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.simplefilter("ignore")
    print(
        "| family | library | options of `ViTConfig` besides the paper's | largest difference of the logits |"
    )
    print("|---|---|---|---|")
    for family in FAMILIES:
        with temporary_folder() as folder:
            found = parity(family, folder)
        print(f"| {family.name} | {family.library} | {family.options} | {found:.0e} |", flush=True)


if __name__ == "__main__":
    main()
