"""Summary of a model: output shape, parameters and multiply-adds of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit.config import ViTConfig
from vit.model import Block, ViT


@dataclass(frozen=True)
class SummaryRow:
    """One step of the forward pass, for one image."""

    name: str
    output: tuple[int, ...]  # shape
    parameters: int
    macs: int  # multiply-adds of the matrix products; norms, softmax and GELU are not counted, as usual


def summarize_model(config: ViTConfig) -> list[SummaryRow]:
    """Return the steps of the model of `config`, in the order of the computation.

    The model runs on the meta device, which stores no numbers.
    """
    with torch.device("meta"):
        model = ViT(config).eval()
        pixels = torch.zeros(1, *config.image_size, 3, dtype=torch.uint8)
    shapes: dict[str, tuple[int, ...]] = {}
    steps = _list_steps(model)
    for name, modules in steps.items():
        modules[0].register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels)
    operations = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    rows = {
        name: SummaryRow(
            name,
            shape,
            sum(each.numel() for module in steps[name] for each in module.parameters()),
            operations.get(f"ViT.{name}", 0) // 2,  # a multiply-add is two operations
        )
        for name, shape in shapes.items()  # in the order of the computation
    }
    embedding = rows.pop("patch_embedding")
    added = sum(value.numel() for name, value in model.named_parameters() if "." not in name)
    return [
        SummaryRow("pixels", (*config.image_size, 3), 0, 0),
        embedding,
        SummaryRow("class_token, position", (config.tokens, config.width), added, 0),
        *rows.values(),
    ]


def _list_steps(model: ViT) -> dict[str, list[nn.Module]]:
    """Return the modules whose parameters a step has, by the name of the first of them."""
    steps: dict[str, list[nn.Module]] = {}
    steps |= {"patch_embedding": [model.patch_embedding], "pre_norm": [model.pre_norm]}
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)  # a ViT has no others
        steps[f"blocks.{index}.attention"] = [block.attention, block.norm1, block.scale1]
        steps[f"blocks.{index}.mlp"] = [block.mlp, block.norm2, block.scale2]
    steps["norm"] = [model.norm]
    if model.pool is not None:
        steps["pool"] = [model.pool]
    steps["projection"] = [model.projection]
    layers = model.head if isinstance(model.head, nn.Sequential) else [model.head]
    names = [f"head.{index}" for index in range(len(layers))] if len(layers) > 1 else ["head"]
    steps |= {name: [layer] for name, layer in zip(names, layers, strict=True)}
    return {name: modules for name, modules in steps.items() if list(modules[0].parameters())}


def format_summary(config: ViTConfig) -> str:
    """Return the steps as a table, and their sums."""
    rows = summarize_model(config)
    lines = [f"{'layer':<24}{'output':>16}{'parameters':>14}{'MMACs':>10}"]
    for row in rows:
        shape = " x ".join(map(str, row.output))
        lines.append(f"{row.name:<24}{shape:>16}{row.parameters:>14,}{row.macs / 1e6:>10.2f}")
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    lines.append(f"{'total':<24}{'':>16}{parameters:>14,}{macs / 1e6:>10.2f}")
    lines.append(
        f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs per image, "
        f"{4 * parameters / 2**20:.1f} MiB in float32, {parameters / 2**20:.1f} MiB in INT8"
    )
    return "\n".join(lines)
