"""Families of transformers and timm through `python -m export --onnx`: which come through, and how exactly.

    python -m benchmarks.onnx_families --models data/onnx-families --table docs/reference/onnx-families.md

Each family is built small with random weights, exported by torch, read as an ONNX model, and its
canonical graph compared with the original file. Needs what `make .venv` installs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.other_libraries import import_timm, randomize_weights
from export.sources.onnx_description import OnnxDescription
from export.sources.onnx_file import read_onnx_file
from export.write_artifact import serialize_model
from runtime.errors import VitEdgeError
from runtime.images.preprocess import Preprocess
from runtime.session import open_session

PARITY = 1e-5  # of the logits' scale
OPSET = 18
LARGER = {"crossvit_tiny_240": 240, "coat_tiny": 224, "efficientformer_l1": 224, "efficientformerv2_s0": 224}


@dataclass(frozen=True)
class Outcome:
    """Result of one family under one exporter and batch."""

    family: str
    exporter: str  # "torchscript" or "dynamo"
    batch: str  # "free" or a number
    error: str | None = None  # the first line of what was said, else None
    stage: str = ""  # "torch" when torch itself could not export it, else "load"
    parity: float = 0.0
    token_order: int = 0  # places that tokens_before_batch changed
    float_layers: int = 0  # layers with weights that stay float
    digest: str = ""  # of the canonical float model, so that two versions can be compared


def exported(model: nn.Module, side: int, exporter: str, batch: str) -> bytes:
    """Return the bytes of the .onnx file that torch writes."""
    free = batch == "free"
    images = torch.zeros(2 if free else int(batch), 3, side, side)
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("batch")},) if free else None
            program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            if program is None:
                raise RuntimeError("torch.onnx.export gave no model")
            program.save(file)
        else:
            axes = {"images": {0: "batch"}} if free else None
            torch.onnx.export(
                model, (images,), file, dynamo=False, opset_version=OPSET, dynamic_axes=axes,
                input_names=["images"], output_names=["scores"],
            )  # fmt: skip
    return file.getvalue()


def tried(name: str, make: Callable[[], nn.Module], exporter: str, batch: str, folder: Path) -> Outcome:
    """Export, load and compare one family; what stopped it is told, not raised."""
    outcome = Outcome(name, exporter, batch)
    side = LARGER.get(name.split()[-1], SIDE)
    file = folder / f"{name}-{exporter}-{batch}.onnx".replace(" ", "_")
    if not file.exists():
        try:
            file.write_bytes(exported(randomize_weights(make), side, exporter, batch))
        except Exception as error:  # whatever torch, transformers or timm raise
            return replace(outcome, stage="torch", error=first_line(error))
    description = OnnxDescription(Preprocess(size=(side, side)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), None)
    try:
        found = read_onnx_file(file, description)
        data = serialize_model(found.exported.model)
        session = open_session(data, device="cpu", threads=1)
        pixels = np.random.default_rng(3).integers(0, 256, (3, side, side, 3), np.uint8)
        expected, logits = found.reference(pixels), session.run(None, {"pixels": pixels})[0]
        if not expected.std(axis=0).max() > 0:
            return replace(outcome, stage="load", error="the logits are the same for every image")
    except VitEdgeError as error:
        return replace(outcome, stage="load", error=first_line(error))
    except Exception as error:  # a bug: shown as such
        return replace(outcome, stage="load", error=f"TRACEBACK {type(error).__name__}: {first_line(error)}")
    return replace(
        outcome,
        parity=float(np.abs(logits - expected).max() / max(float(np.abs(expected).max()), 1e-12)),
        token_order=found.exported.passes.get("tokens_before_batch", 0),
        float_layers=len(found.float_layers),
        digest=hashlib.sha256(data).hexdigest()[:16],
    )


def first_line(error: Exception) -> str:
    """Return the first line of a message, without colors and without the folder of the model file."""
    text = re.sub(r"\x1b\[\d+m|\S*/(?=[^/\s]+\.onnx)", "", str(error))
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]


def passed(outcome: Outcome) -> bool:
    """Return whether the family came through, with the logits of the original."""
    return outcome.error is None and outcome.parity <= PARITY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="families whose name has it")
    # torchscript alone: where it cannot, dynamo.
    parser.add_argument("--exporter", nargs="+", default=["torchscript"], choices=("torchscript", "dynamo"))
    parser.add_argument("--batch", nargs="+", default=["free"], help='"free", or numbers')
    parser.add_argument("--models", type=Path, required=True, help="where the .onnx files are kept")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--table", type=Path, help="write the table in Markdown here")
    options = parser.parse_args(arguments)
    options.models.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for name, make in families().items():
        if options.only and not any(text in name for text in options.only):
            continue
        for exporter in options.exporter:
            for batch in options.batch:
                start = time.perf_counter()
                outcome = tried(name, make, exporter, batch, options.models)
                if outcome.stage == "torch" and exporter == "torchscript" == options.exporter[-1]:
                    outcome = tried(name, make, "dynamo", batch, options.models)  # what the older cannot
                outcomes.append(outcome)
                if options.table:  # after each: a long run that is cut short leaves what it found
                    options.table.write_text(table(outcomes), encoding="utf-8")
                seconds = time.perf_counter() - start
                what = outcome.error or f"{outcome.parity:.1e}"
                extra = f"order {outcome.token_order}, float {outcome.float_layers}, {seconds:.0f} s"
                print(
                    f"{'ok  ' if passed(outcome) else 'FAIL'} {name:44} {exporter} {batch}: "
                    f"{outcome.stage} {what} [{extra}]",
                    flush=True,
                )
    print(f"{sum(map(passed, outcomes))} of {len(outcomes)}")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1), encoding="utf-8")
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the page with one row for each outcome, and what was said where one did not come through."""
    whole = [each for each in outcomes if each.stage != "torch"]
    torch_failed = [each for each in outcomes if each.stage == "torch"]
    good = sum(map(passed, whole))
    worst = max((each.parity for each in whole if passed(each)), default=0.0)
    lines = [
        "# Families of transformers and timm through `--onnx`",
        "",
        f"{good} of {len(whole)} come through with the logits of the original file; the largest",
        f"difference is {worst:.1e} of the largest logit, the limit {PARITY:.0e}. Tiny models with random",
        f"weights, exported by torch {torch.__version__.split('+')[0]}; three images.",
        "Made by `python -m benchmarks.onnx_families --models DIR --table FILE`.",
        "",
        "Order: places that the token-by-token row order changed; 0 where the model stays image by image.",
        "Float: layers with weights that INT8 leaves in float32, convolutions mostly.",
        "",
        "| family | exporter, batch | difference | order | float |",
        "|---|---|---|---|---|",
    ]
    for each in whole:
        how = f"{each.exporter}, {each.batch}"
        what = each.error.replace("|", "/") if each.error else f"{each.parity:.1e}"
        lines.append(f"| {each.family} | {how} | {what} | {each.token_order} | {each.float_layers} |")
    if torch_failed:
        lines += ["", "torch itself could not export, or these sizes do not suit:", ""]
        lines += [f"- {each.family} ({each.exporter}, {each.batch}): {each.error}" for each in torch_failed]
    return "\n".join(lines) + "\n"


# --- The families: tiny models, no weights are downloaded ---


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
        """Return the logits of transformers alone."""
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


if __name__ == "__main__":
    sys.exit(main())
