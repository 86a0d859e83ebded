"""Tiny models with lively random weights of many families of transformers and timm.

No weights are downloaded. timm is imported as tools/beside_torch.py does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tools.beside_torch import import_timm

CLASSES, SIDE = 7, 64
WIDTH = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
PATCHES = {"image_size": SIDE, "patch_size": 16}
VIT = WIDTH | PATCHES
STAGES = {"depths": [1, 1, 2, 1], "image_size": SIDE}
VIT_TIMM = {"img_size": SIDE, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}

# Model type of transformers' image classifiers → what makes it small.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT,
    "deit distilled": VIT,
    "beit": VIT | {"use_relative_position_bias": True},
    "data2vec-vision": VIT | {"use_shared_relative_position_bias": True},
    "dinov2": VIT | {"mlp_ratio": 2},
    "dinov2_with_registers": VIT | {"mlp_ratio": 2},
    "vit_msn": VIT,
    "ijepa": VIT,
    "siglip": VIT,
    "clip": VIT,
    "metaclip_2": VIT,
    "hiera": {"embed_dim": 24, "image_size": [SIDE, SIDE], "depths": [1, 1, 2, 1]},
    "swin": STAGES | {"embed_dim": 24, "window_size": 2, "num_heads": [1, 2, 3, 6]},
    "swinv2": STAGES | {"embed_dim": 24, "window_size": 2, "num_heads": [1, 2, 3, 6]},
    "donut-swin": STAGES | {"embed_dim": 24, "window_size": 2, "num_heads": [1, 2, 3, 6]},
    "focalnet": STAGES | {"embed_dim": 24},
    "cvt": {"depth": [1, 2, 3]},  # it asks for rates of dropout up to the number of the stage
    "levit": {"image_size": SIDE, "hidden_sizes": [32, 48, 64], "depths": [1, 1, 1]},
    "pvt": {"image_size": SIDE, "depths": [1, 1, 1, 1]},
    "pvt_v2": {"image_size": SIDE, "depths": [1, 1, 1, 1]},
    "segformer": {"depths": [1, 1, 1, 1]},
    "mobilevit": {"image_size": SIDE, "hidden_sizes": [48, 64, 80]},
    "mobilevitv2": {"image_size": SIDE},
    "swiftformer": {"image_size": SIDE, "depths": [1, 1, 2, 1]},
    "poolformer": {"depths": [1, 1, 1, 1]},
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 72, 96]},
    "convnextv2": {"depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 72, 96]},
    "resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128], "embedding_size": 16},
    "regnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128], "groups_width": 16},
    "mobilenet_v2": {"image_size": SIDE},
    "efficientnet": {"image_size": SIDE, "depth_coefficient": 0.3},
}

# timm's model → what makes it small.
TIMM: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": VIT_TIMM,
    "vit_base_patch16_clip_224": VIT_TIMM,
    "vit_base_patch16_siglip_224": VIT_TIMM,
    "vit_medium_patch16_reg4_gap_256": VIT_TIMM,
    "vit_relpos_base_patch16_224": VIT_TIMM,
    "vit_srelpos_small_patch16_224": VIT_TIMM,
    "vit_small_patch14_dinov2": VIT_TIMM,
    "vit_small_patch16_dinov3": VIT_TIMM,
    "flexivit_small": VIT_TIMM,
    "deit_base_distilled_patch16_224": VIT_TIMM,
    "deit3_base_patch16_224": VIT_TIMM,
    "beit_base_patch16_224": VIT_TIMM,
    "beitv2_base_patch16_224": VIT_TIMM,
    "eva02_tiny_patch14_224": VIT_TIMM,
    "cait_xxs24_224": VIT_TIMM | {"depth": 2},
    "xcit_nano_12_p16_224": {"img_size": SIDE, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "convit_tiny": {"img_size": SIDE, "embed_dim": 48, "depth": 4, "num_heads": 3, "local_up_to_layer": 2},
    "crossvit_tiny_240": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": SIDE,
        "window_size": 2,
        "embed_dim": 24,
        "depths": (1, 2, 1, 1),
    },
    "swinv2_tiny_window8_256": {"img_size": SIDE, "window_size": 2, "embed_dim": 24, "depths": (1, 2, 1, 1)},
    "twins_svt_small": {"img_size": SIDE, "depths": [1, 1, 2, 1], "wss": [2, 2, 2, 2]},
    "pit_ti_224": {"img_size": SIDE, "depth": [1, 1, 1]},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "levit_128s": {"img_size": SIDE},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "efficientformer_l1": {"depths": (1, 1, 1, 1), "num_vit": 1},
    "efficientformerv2_s0": {},
    "coat_tiny": {},
    "coatnet_nano_rw_224": {"img_size": SIDE},
    "maxvit_pico_rw_256": {"img_size": SIDE},
    "visformer_tiny": {"img_size": SIDE},
    "volo_d1_224": {"img_size": SIDE},
    "tnt_s_legacy_patch16_224": {"img_size": SIDE, "depth": 2},
    "nest_tiny": {"img_size": SIDE},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "edgenext_xx_small": {},
    "fastvit_t8": {},
    "hiera_tiny_224": {"img_size": (SIDE, SIDE)},
    "gcvit_xxtiny": {"img_size": SIDE},
    "mvitv2_tiny": {"img_size": SIDE},
    "caformer_s18": {},
    "poolformer_s12": {},
    "repvit_m0_9": {},
    "tiny_vit_5m_224": {"depths": [1, 1, 1, 1]},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": SIDE},
    "mixer_s32_224": {"img_size": SIDE},
    "resmlp_12_224": {"img_size": SIDE},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "inception_next_atto": {"depths": (1, 1, 1, 1)},
    "resnet18": {},
    "mambaout_femto": {"depths": (1, 1, 1, 1)},
}


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits  # type: ignore[no-any-return]


def families() -> dict[str, Callable[[], nn.Module]]:
    """Every family by its name, `transformers vit` or `timm cait_xxs24_224`, and what makes it."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, options in TRANSFORMERS.items():
        found[f"transformers {name}"] = lambda name=name, options=options: of_transformers(name, options)
    for name, options in TIMM.items():
        found[f"timm {name}"] = lambda name=name, options=options: of_timm(name, options)
    return found


def of_transformers(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a small image classifier of transformers."""
    import transformers

    model_type, _, variant = name.partition(" ")
    config_of = {"siglip": "SiglipConfig", "clip": "CLIPConfig", "metaclip_2": "MetaClip2Config"}
    if class_name := config_of.get(model_type):
        options = {"vision_config": options}
        config = getattr(transformers, class_name)(**options)
        config.num_labels = CLASSES
    else:
        config = transformers.AutoConfig.for_model(model_type, num_labels=CLASSES, **options)
    if variant == "distilled":
        return Logits(transformers.DeiTForImageClassificationWithTeacher(config))
    of_several = {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}
    if model_type in of_several:
        return Logits(getattr(transformers, of_several[model_type])(config))
    model = transformers.AutoModelForImageClassification.from_config(config)
    return Logits(with_statistics(model) if model_type == "efficientnet" else model)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give batch norms the statistics of noise: with those of a new EfficientNet, images leave no trace."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all that went by
    with torch.no_grad():
        model.train()(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def of_timm(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a small classifier of timm."""
    model: nn.Module = import_timm().create_model(name, pretrained=False, num_classes=CLASSES, **options)
    return model
