"""All checks of the options of an export: `export` makes them before it decodes an image.

`check_combinations` needs the options alone, `check_without_weights` the facts of the source that need no
weights, and `check_with_graph` the float graph.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.graph.layers import find_layers
from calibration.plan import PlanError, QuantizationPlan, read_plan
from calibration.token_merging.merge_schedule import (
    count_merges,
    list_middle_blocks,
    make_even_schedule,
    schedule_middle_blocks,
)
from export.image_sets import ExportImages, choose_evaluation_images, choose_images, use_model_classes
from export.options import Options
from export.sources.read_source import SourceFacts
from runtime.errors import InputError
from runtime.writing import check_folder, check_temporary_folder
from vit.config import ViTConfig
from vit.data.datasets import DataError, open_images

if TYPE_CHECKING:
    from export.sources.source import Source

_LIMITS = ("max_drift", "min_agreement", "min_sqnr", "min_cosine")
_CHOOSING = ("keep_float", "merge_tokens")  # options that choose a plan
# Names that one line of a message can hold; of a larger model, the nearest.
_SHOWN_LAYERS, _NEAREST_LAYERS = 20, 3


def check_combinations(options: Options) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: saying what to leave out, or what to add.
    """
    choosing = _first_given(options, _CHOOSING)
    if options.onnx is not None and options.checkpoint is not None:
        raise InputError("expected a checkpoint or --onnx MODEL, found both")
    if options.onnx is None and options.preprocess is not None:
        raise InputError("--preprocess SPEC describes an ONNX model: add --onnx MODEL")
    if options.target == "npu" and choosing:
        raise InputError(
            f"{choosing} leaves work to the CPU, and --target npu makes a file that an NPU runs alone: leave "
            "one out"
        )
    if options.plan is not None and choosing:
        raise InputError(
            f"{choosing} chooses a plan and --plan brings one: leave one out; in a plan, edit its "
            '"linears" or its "merging"'
        )
    if options.plan is not None and options.target != "auto":
        raise InputError(
            "--target is the form of INT8 weights and --plan brings one: leave --target out; in a plan, edit "
            'its "target"'
        )
    if options.writes_int8:
        return
    if for_int8 := "--target" if options.target != "auto" else choosing:
        raise InputError(f"{for_int8} is for an INT8 file: add --quantize")
    if not options.fp16 and (limit := _first_given(options, _LIMITS)):
        raise InputError(f"{limit} limits INT8 and float16 files: add --quantize, --plan or --fp16")


def check_without_weights(options: Options, facts: SourceFacts, out: Path) -> None:
    """Check the options, and the folder to write to, against the facts of a source that need no weights.

    Raises:
        OutputError: for a folder that cannot be written to, or where there is none for temporary files.
        PlanError: for a plan, names of layers, or a number of merged tokens that are not of this model.
        InputError: for limits of an output that the model does not give.
        DataError: for photos of the self-test that are not there.
    """
    check_folder(out)
    if options.self_test is not None:
        open_images(options.self_test)
    config = facts.config
    if options.quantize or config is not None:  # ONNX Runtime writes its graph there, torch a cache
        check_temporary_folder()
    if facts.labels is not None:
        _check_limits(facts.labels, options)
    plan = None if options.plan is None else read_plan(options.plan)
    if config is None or (layers := list_layer_names(config)) is None:
        return
    _check_layers(options, plan, layers)
    if isinstance(options.merge_tokens, int):
        blocks = [f"blocks.{index}" for index in range(config.depth)]
        schedule = make_even_schedule(list_middle_blocks(blocks), options.merge_tokens)
        count_merges(schedule, blocks[:-1], tokens=config.tokens, patches=config.grid[0] * config.grid[1])


def check_with_graph(options: Options, source: Source) -> None:
    """Check the options against the model itself, before an image is read.

    Raises:
        PlanError: for a plan, names of layers, or a number of merged tokens that are not of this model.
        InputError: for options that do not go together, or limits of an output that the model does not give.
    """
    check_combinations(options)
    _check_limits(source.labels, options)
    model = source.exported.model
    if isinstance(options.merge_tokens, int):
        schedule_middle_blocks(model, options.merge_tokens)
    if options.plan is None and not options.keep_float:
        return
    plan = None if options.plan is None else read_plan(options.plan)
    if plan is not None and plan.merging and not source.labels:
        raise PlanError(f'{options.plan}: it merges tokens, which needs classes; empty its "merging"')
    sites = find_layers(model)
    _check_layers(options, plan, (*sites.linears, *sites.products))


def open_export_images(options: Options, labels: tuple[str, ...] | None) -> ExportImages:
    """Open the images that an export is made with; none is decoded yet. Labels None: not known yet.

    Raises:
        DataError: for images that cannot be used.
    """
    if options.calibration is not None:
        chosen = choose_images(
            options.calibration,
            options.evaluate,
            samples=options.samples,
            evaluation_samples=options.evaluation_samples,
            search=options.searches,
        )
    elif options.evaluate is not None and (options.plan is not None or not options.quantize):
        chosen = choose_evaluation_images(options.evaluate, options.evaluation_samples)
    else:
        found = "none given" if options.evaluate is None else "none to calibrate with"
        raise DataError(
            f"expected images like those the model will meet, found {found}; add --calibration IMAGES"
        )
    if labels is not None:
        chosen = use_model_classes(chosen, labels)
    for each in (chosen.evaluation, chosen.search):
        if options.max_drift is not None and each is not None and each.targets is None:
            raise DataError(
                f"{each.name}: --max-drift needs known classes, images in folders named as "
                "the classes; for loose images use --min-agreement"
            )
    return chosen


def list_layer_names(config: ViTConfig) -> tuple[str, ...] | None:
    """Return the names of the layers in the canonical graph of a checkpoint; a test compares them with it.

    None for a model that is not the paper's: its graph tells.
    """
    plain = ViTConfig()
    special = ("pooling", "registers", "class_token", "gated", "qk_norm", "rotary", "attention_bias")
    if any(getattr(config, name) != getattr(plain, name) for name in special) or not config.classes:
        return None
    inside = ("query", "key", "value", "proj", "scores", "mix")
    parts = (*(f"attention.{part}" for part in inside), "mlp.fc1", "mlp.fc2")
    blocks = (f"blocks.{index}.{part}" for index in range(config.depth) for part in parts)
    head = ("head.0", "head.2") if config.representation else ("head",)
    return ("patch_embedding", *blocks, *(("projection",) if config.projection else ()), *head)


def is_product(name: str) -> bool:
    """Return whether a layer's name is that of a product of attention."""
    return name.endswith((".scores", ".mix"))


def check_layer_names(keep_float: Collection[str], layers: Collection[str]) -> None:
    """Refuse names that are no layer.

    Raises:
        PlanError: with the names that there are.
    """
    if unknown := sorted(set(keep_float) - set(layers)):
        there = ", ".join(layers)
        if len(layers) > _SHOWN_LAYERS:
            nearest = get_close_matches(unknown[0], layers, _NEAREST_LAYERS, cutoff=0)
            there = f"{', '.join(nearest)} and {len(layers) - len(nearest)} more, all in plan.json"
        raise PlanError(f"no layer is called {', '.join(unknown)}; the model has: {there}")


def _check_layers(options: Options, plan: QuantizationPlan | None, layers: Collection[str]) -> None:
    """Refuse a plan of another model, and names of --keep-float that are no layer of this one."""
    check_layer_names(options.keep_float, layers)
    if plan is None:
        return
    for kind, named in (("linear layer", plan.linears), ("attention product", plan.products)):
        if unknown := [name for name in named if name not in layers]:
            there, here = len(plan.linears), sum(not is_product(name) for name in layers)
            raise PlanError(
                f"{options.plan}: the plan names the {kind} {unknown[0]!r}, which this model does not have; "
                f"it was made for a model with {there} linear layers, this model has {here}"
            )


def _check_limits(labels: tuple[str, ...], options: Options) -> None:
    """Refuse limits for an output that the model does not give; one without classes gives an embedding."""
    if options.min_cosine is not None and labels and not options.embedding:
        raise InputError("--min-cosine limits the drift of embeddings, the model gives none; add --embedding")
    if not labels and (options.budget.limits or options.merge_tokens is not None):
        raise InputError(
            "the model has no classes: --max-drift, --min-agreement, --min-sqnr and --merge-tokens judge "
            "logits; limit the drift of its embeddings with --min-cosine"
        )


def _first_given(options: Options, names: tuple[str, ...]) -> str | None:
    """Return the first of these options that the command line gives."""
    given = (name for name in names if getattr(options, name) not in (None, ()))
    return next(("--" + name.replace("_", "-") for name in given), None)
