"""The command line: `python -m export CHECKPOINT --quantize --calibration IMAGES --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.command import positive, run_command
from runtime.errors import DONE, InputError, MissingPackageError
from runtime.targets import TARGETS, unknown_target

if TYPE_CHECKING:
    from export.source import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    command = parser()
    options = command.parse_args(arguments)
    if options.onnx is not None and options.checkpoint is not None:
        command.error("expected a checkpoint or --onnx MODEL, found both")
    if options.onnx is None and options.preprocess is not None:
        command.error("--preprocess SPEC describes an ONNX model: add --onnx MODEL")
    stopped = "stopped; the files of the last export are as they were"
    return run_command("export", lambda: run(options), stopped=stopped)


def run(arguments: argparse.Namespace) -> int:
    from export.example import ARTIFACTS, IMAGES, example_checkpoint
    from export.measure.environment import target_here
    from export.pipeline import Options, export
    from export.report.terminal import table
    from export.source import from_onnx

    example = arguments.checkpoint is None and arguments.onnx is None
    if example and arguments.calibration is None:
        arguments.calibration = IMAGES
    if arguments.onnx is not None:
        source = from_onnx(arguments.onnx, arguments.preprocess)
    else:
        source = checkpoint_source(example_checkpoint(say=note) if example else arguments.checkpoint)
    for sentence in source.description.get("assumed", ()):
        note(f"assumed, since the source does not say: {sentence}")
    out = arguments.out or (ARTIFACTS if example else Path("artifacts") / source.description["name"])
    options = Options(
        calibration=arguments.calibration,
        evaluation=arguments.evaluate,
        samples=arguments.samples,
        evaluation_samples=arguments.evaluation_samples,
        quantize=arguments.quantize,
        half=arguments.fp16,
        target=target_here() if arguments.target == "auto" else arguments.target,
        keep_float=tuple(arguments.keep_float),
        plan=arguments.plan,
        max_drift=arguments.max_drift,
        min_agreement=arguments.min_agreement,
        min_sqnr=arguments.min_sqnr,
        embedding=arguments.embedding,
        min_cosine=arguments.min_cosine,
        merge_tokens=arguments.merge_tokens,
        threads=arguments.threads,
    )
    results = export(source, out, options, progress_bar)
    print(table(results, out))
    return DONE


def checkpoint_source(path: Path) -> Source:
    """Load a checkpoint, or weights of another project; say so when a training is not finished.

    Raises:
        CheckpointError: for a file that is no whole checkpoint.
        MissingPackageError: where PyTorch is not installed.
    """
    try:
        from vit.checkpoint import load_checkpoint
    except ImportError as error:
        raise MissingPackageError(
            f'{path}: a checkpoint needs PyTorch: pip install "vit-edge[export]"; an ONNX model does not: '
            "python -m export --onnx MODEL"
        ) from error
    from export.source import from_checkpoint, from_weights, is_of_others

    if is_of_others(path):
        return from_weights(path)
    if path.suffix == ".onnx" or (path.is_dir() and [*path.glob("*.onnx"), *path.glob("onnx/*.onnx")]):
        raise InputError(f"{path}: an ONNX model; write --onnx {path}")
    checkpoint = load_checkpoint(path)
    if not checkpoint.finished:
        note(f"{checkpoint.path}: {unfinished(checkpoint.history, checkpoint.recipe)}")
    return from_checkpoint(checkpoint)


def note(line: str) -> None:
    """Print a line for people on standard error."""
    print(f"export: {line}", file=sys.stderr)


def unfinished(history: Sequence[object], recipe: Mapping[str, Any]) -> str:
    """Say how far a run has come whose checkpoint is not the final one."""
    epochs = recipe.get("recipe", {}).get("epochs", "?")
    return (
        f"the training is not finished (epoch {len(history)} of {epochs}); this exports the best epoch "
        "so far; finish it with python -m vit train … --resume"
    )


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a checkpoint into ONNX files for a device; measure them against the float model.",
        epilog="Exit codes: 0 done; 1 the export failed or drifts too far, nothing was written; 2 wrong use.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        type=Path,
        help="a file or folder: a checkpoint, or weights of another project (default: the digits example)",
    )
    add(
        "--onnx",
        type=Path,
        metavar="MODEL",
        help="a float32 ViT as ONNX in the place of a checkpoint: a file, or the folder of optimum or "
        "transformers.js",
    )
    add(
        "--preprocess",
        type=Path,
        metavar="SPEC",
        help="what the --onnx model wants to see: JSON with preprocess, mean, std and labels, or a "
        "preprocessor_config.json (default: the one beside the model)",
    )
    add("--fp16", action="store_true", help="also write model.fp16.onnx, for GPUs")
    add("--quantize", action="store_true", help="also write model.int8.onnx (static INT8)")
    add("--calibration", metavar="IMAGES", help="an image folder, an IDX folder, fashion-mnist or digits")
    add(
        "--evaluate",
        metavar="IMAGES",
        help="measure drift on these (default: images that did not calibrate)",
    )
    add("--out", type=Path, metavar="DIR", help="where the files go (default: artifacts/NAME)")
    add("--samples", type=positive, default=128, metavar="N", help="images to calibrate with (default: 128)")
    add("--evaluation-samples", type=positive, metavar="N", help="images to measure with (default: all)")
    add("--max-drift", type=float, metavar="POINTS", help="fail when top-1 falls by more percentage points")
    add("--min-agreement", type=float, metavar="PERCENT", help="fail when fewer images keep their label")
    add(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="fail when the logits' signal-to-noise ratio is lower (default: 20 with --merge-tokens "
        "and no R, else none)",
    )
    add(
        "--embedding",
        action="store_true",
        help="also give out the embedding, what the last linear layer reads; a model without classes gives "
        "nothing else",
    )
    add(
        "--min-cosine",
        type=float,
        metavar="COSINE",
        help="fail when the mean cosine of the embeddings to those of float32 is lower",
    )
    add(
        "--merge-tokens",
        nargs="?",
        const="auto",
        type=token_count,
        metavar="R",
        help="merge similar patches inside int8, an approximation: R per block in the middle half of "
        "the blocks, or without R as many as --max-drift, --min-agreement and --min-sqnr allow",
    )
    add(
        "--target",
        type=target_or_auto,
        default="auto",
        metavar="TARGET",
        help="the form of INT8 weights: any-cpu is exact at full speed on every CPU, full-range is more "
        "precise and needs VNNI, ARM64 or WebAssembly for full speed; auto takes the one for this CPU "
        "(default: %(default)s)",
    )
    add("--plan", type=Path, metavar="PLAN", help="quantize by this plan.json instead of calibrating")
    add("--keep-float", nargs="+", default=[], metavar="LAYER", help="layers to leave in float32")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
