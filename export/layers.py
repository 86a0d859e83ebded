"""Names of the layers that can be quantized: what a plan and --keep-float must fit. Known without a graph."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from calibration.plan import PlanError, QuantizationPlan
from calibration.token_merging.merge_schedule import count_merges, even_schedule, middle_blocks
from export.options import Options
from vit.config import ViTConfig

# names that one line of a message can hold; of a larger model, the nearest
SHOWN_LAYERS, NEAREST_LAYERS = 20, 3


def check_layers(options: Options, plan: QuantizationPlan | None, layers: Collection[str]) -> None:
    """Refuse a plan or a name of --keep-float that is not of this model.

    Args:
        options: with the plan's file, and the names.
        plan: the given plan, or None.
        layers: the names of the model's linear layers and attention products.

    Raises:
        PlanError: naming what is unknown, and what there is.
    """
    if plan is not None and options.plan is not None:
        check_plan(options.plan, plan, layers)
    check_names(options.keep_float, layers)


def check_plan(file: Path, plan: QuantizationPlan, layers: Collection[str]) -> None:
    """Refuse a plan of another model.

    Raises:
        PlanError: naming a layer that this model has not, and the number of layers of both.
    """
    for kind, named in (("linear layer", plan.linears), ("attention product", plan.products)):
        if unknown := [name for name in named if name not in layers]:
            there, here = len(plan.linears), sum(not is_product(name) for name in layers)
            raise PlanError(
                f"{file}: the plan names the {kind} {unknown[0]!r}, which this model does not have; it was "
                f"made for a model with {there} linear layers, this model has {here}"
            )


def check_names(keep_float: Collection[str], layers: Collection[str]) -> None:
    """Refuse names that are no layer.

    Raises:
        PlanError: with the names that there are.
    """
    if unknown := sorted(set(keep_float) - set(layers)):
        there = ", ".join(layers)
        if len(layers) > SHOWN_LAYERS:
            nearest = get_close_matches(unknown[0], layers, NEAREST_LAYERS, cutoff=0)
            there = f"{', '.join(nearest)} and {len(layers) - len(nearest)} more, all in plan.json"
        raise PlanError(f"no layer is called {', '.join(unknown)}; the model has: {there}")


def is_product(name: str) -> bool:
    """Return whether a layer's name is that of a product of attention."""
    return name.endswith((".scores", ".mix"))


def check_merging(config: ViTConfig, merged: int) -> None:
    """Refuse more merged tokens per block than a checkpoint's model has patches for.

    Raises:
        PlanError: naming the block that cannot merge so many.
    """
    blocks = [f"blocks.{index}" for index in range(config.depth)]
    patches = config.grid[0] * config.grid[1]
    schedule = even_schedule(middle_blocks(blocks), merged)
    count_merges(schedule, blocks[:-1], tokens=config.tokens, patches=patches)


def layers_of(config: ViTConfig) -> tuple[str, ...] | None:
    """Return the names of the layers in the canonical graph of a checkpoint.

    None for a model that is not the paper's: its graph tells. A test compares the names with the graph's.
    """
    plain = ViTConfig()
    special = ("pooling", "registers", "class_token", "gated", "qk_norm", "rotary", "attention_bias")
    if any(getattr(config, name) != getattr(plain, name) for name in special) or not config.classes:
        return None
    inside = ("query", "key", "value", "proj", "scores", "mix")
    names = ["patch_embedding"]
    for index in range(config.depth):
        names += [f"blocks.{index}.attention.{part}" for part in inside]
        names += [f"blocks.{index}.mlp.fc1", f"blocks.{index}.mlp.fc2"]
    return (*names, *(("head.0", "head.2") if config.representation else ("head",)))
