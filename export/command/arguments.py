"""Arguments of `python -m export`, in groups that belong together. Nothing heavy is imported for --help."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.command.line import number, positive
from runtime.model_file.targets import TARGETS, unknown_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every argument and option, in the order in which --help lists them."""
    _add_source(parser)
    _add_files_and_images(parser)
    _add_limits(parser)
    _add_quantization(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint or its folder, or weights of another project (default: the digits example)",
    )
    add(
        "--onnx",
        type=Path,
        metavar="MODEL",
        help="float32 ONNX model of another project, instead of a checkpoint: an .onnx file, or the folder "
        "of optimum or transformers.js",
    )
    add(
        "--preprocess",
        type=Path,
        metavar="SPEC",
        help="description of the --onnx model: JSON with preprocess, mean, std and labels, or a "
        "preprocessor_config.json (default: the one beside the model)",
    )


def _add_files_and_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--fp16", action="store_true", help="also write model.fp16.onnx, for GPUs")
    add("--quantize", action="store_true", help="also write model.int8.onnx (static INT8)")
    add(
        "--calibration",
        metavar="IMAGES",
        help="images for calibration, required with a model: an image folder, an IDX folder, fashion-mnist "
        "or digits",
    )
    add(
        "--evaluate",
        metavar="IMAGES",
        help="images to measure drift on (default: images that did not calibrate)",
    )
    add("--out", type=Path, metavar="DIR", help="folder for the files (default: artifacts/NAME)")
    add(
        "--samples",
        type=positive,
        default=128,
        metavar="N",
        help="number of calibration images (default: 128)",
    )
    add(
        "--evaluation-samples",
        type=positive,
        metavar="N",
        help="number of images to measure on (default: all)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-drift",
        type=number(0, 100),
        metavar="POINTS",
        help="fail if top-1 falls by more percentage points, with 95 %% confidence",
    )
    add(
        "--min-agreement",
        type=number(0, 100),
        metavar="PERCENT",
        help="fail if fewer images keep their label, with 95 %% confidence",
    )
    add(
        "--min-sqnr",
        type=number(),
        metavar="DB",
        help="fail if the signal-to-noise ratio of the logits is lower, with 95 %% confidence (default: 20 "
        "with --merge-tokens and no R, else none)",
    )
    add(
        "--embedding",
        action="store_true",
        help="also write the embedding as an output: what the last linear layer reads; a model without "
        "classes has no other output",
    )
    add(
        "--min-cosine",
        type=number(-1, 1),
        metavar="COSINE",
        help="fail if the mean cosine of the embeddings to those of float32 is lower, with 95 %% confidence",
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--merge-tokens",
        nargs="?",
        const="auto",
        type=token_count,
        metavar="R",
        help="merge similar patches in the INT8 model, an approximation: R per block in the middle half of "
        "the blocks; without R, as many as --max-drift, --min-agreement and --min-sqnr allow",
    )
    add(
        "--target",
        type=target_or_auto,
        default="auto",
        metavar="TARGET",
        help="form of the INT8 weights: any-cpu is exact at full speed on every CPU, full-range is more "
        "precise and needs VNNI, ARM64 or WebAssembly for full speed; auto selects the one for this CPU "
        "(default: %(default)s)",
    )
    add("--plan", type=Path, metavar="PLAN", help="quantize by this plan.json instead of calibrating")
    add(
        "--keep-float",
        action="append",
        default=[],
        metavar="LAYER",
        help="layer to leave in float32; may be repeated; plan.json lists the names",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    add("--verbose", action="store_true", help="also list the layers that each rewrite left alone, and why")


def target_or_auto(text: str) -> str:
    """Return the name of an INT8 target, for argparse; a former name gets an error with its new name."""
    if text == "auto" or text in TARGETS:
        return text
    raise argparse.ArgumentTypeError(f"{unknown_target(text)}; auto takes the one for this CPU")


def token_count(text: str) -> int | str:
    """Read the value of --merge-tokens: a number from 1, or "auto"."""
    try:
        return text if text == "auto" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a number of tokens from 1 or auto, found {text!r}; "
            "write --merge-tokens behind the checkpoint"
        ) from error
