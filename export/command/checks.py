"""Checks of an export that need neither weights nor torch, made before all else."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from calibration.plan import read_plan
from export.image_sets import ExportImages
from export.layers import check_layers, check_merging, layers_of
from export.options import Options, check_outputs, images_of
from runtime.errors import InputError
from runtime.writing import check_folder, check_temporary_folder
from vit.config import ViTConfig

LIMITS = ("max_drift", "min_agreement", "min_sqnr", "min_cosine")
CHOOSING = ("keep_float", "merge_tokens")  # options that choose a plan


@dataclass(frozen=True)
class Known:
    """Facts about a source that need none of its weights.

    Attributes:
        labels: of the classes; None where only the weights tell.
        config: of a checkpoint's model; None where only the graph tells.
    """

    labels: tuple[str, ...] | None = None
    config: ViTConfig | None = None


def check_combinations(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: saying what to leave out, or what to add.
    """
    given = {
        name for name, value in vars(arguments).items() if value is not None and value not in ([], False)
    }
    if arguments.onnx is not None and arguments.checkpoint is not None:
        raise InputError("expected a checkpoint or --onnx MODEL, found both")
    if arguments.onnx is None and arguments.preprocess is not None:
        raise InputError("--preprocess SPEC describes an ONNX model: add --onnx MODEL")
    if arguments.plan is not None and (chosen := [name for name in CHOOSING if name in given]):
        raise InputError(
            f"{_option(chosen[0])} chooses a plan and --plan brings one: leave one out; in a plan, edit its "
            '"linears" or its "merging"'
        )
    if arguments.plan is not None and arguments.target != "auto":
        raise InputError(
            "--target is the form of INT8 weights and --plan brings one: leave --target out; in a plan, edit "
            'its "target"'
        )
    if not arguments.quantize and arguments.plan is None:
        if arguments.target != "auto":
            raise InputError("--target is for an INT8 file: add --quantize")
        if chosen := [name for name in CHOOSING if name in given]:
            raise InputError(f"{_option(chosen[0])} is for an INT8 file: add --quantize")
        if not arguments.fp16 and (limits := [name for name in LIMITS if name in given]):
            raise InputError(
                f"{_option(limits[0])} limits INT8 and float16 files: add --quantize, --plan or --fp16"
            )


def is_example(arguments: argparse.Namespace) -> bool:
    """Return whether neither a checkpoint nor an ONNX model is given, which means the digits example."""
    return arguments.checkpoint is None and arguments.onnx is None


def check_all(options: Options, known: Known, out: Path) -> ExportImages:
    """Check the options against what is known of the source, and choose the images.

    Args:
        options: of the export.
        known: of the source.
        out: the folder to write to.

    Raises:
        OutputError: for a folder that cannot be written to, or where there is none for temporary files.
        PlanError: for a plan, or names of layers, that are not of this model.
        InputError: for limits of an output that the model does not give.
        DataError: for images that cannot be used.
    """
    check_folder(out)
    if options.quantize or known.config is not None:  # ONNX Runtime writes its graph there, torch a cache
        check_temporary_folder()
    if known.labels is not None:
        check_outputs(known.labels, options)
    plan = None if options.plan is None else read_plan(options.plan)
    layers = None if known.config is None else layers_of(known.config)
    if layers is not None and known.config is not None:
        check_layers(options, plan, layers)
        if isinstance(options.merge_tokens, int):
            check_merging(known.config, options.merge_tokens)
    return images_of(options, known.labels)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
