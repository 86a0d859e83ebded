"""The command line: `python -m export CHECKPOINT --quantize --calibration PICTURES --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DONE, FAILED, WRONG_USE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    options = command.parse_args(arguments)
    if options.onnx is not None and options.checkpoint is not None:
        command.error("expected a checkpoint or --onnx MODEL, found both")
    if (options.onnx is None) != (options.preprocess is None):
        command.error(
            "--onnx MODEL and --preprocess SPEC go together: the file does not say what it was trained to see"
        )
    # Heavy imports come after the arguments are understood, so that --help is quick.
    from calibration.graph import GraphError
    from calibration.plan import PlanError
    from calibration.verify import FallbackError
    from export.foreign_spec import ForeignError
    from export.pipeline import ExportError
    from vit.checkpoint import CheckpointError
    from vit.data import DataError

    try:
        return run(options)
    except (CheckpointError, DataError, ForeignError, PlanError) as error:
        return complain(error, WRONG_USE)
    except (ExportError, FallbackError, GraphError, OSError) as error:
        return complain(error, FAILED)
    except KeyboardInterrupt:
        return complain("stopped; the files of the last export are as they were", FAILED)


def run(arguments: argparse.Namespace) -> int:
    from export.environment import target_here
    from export.example import ARTIFACTS, PICTURES, example_checkpoint
    from export.pipeline import Options, export
    from export.source import from_checkpoint, from_onnx
    from export.table import table
    from vit.checkpoint import load_checkpoint

    example = arguments.checkpoint is None and arguments.onnx is None
    if example and arguments.calibration is None:
        arguments.calibration = PICTURES
    if arguments.onnx is not None:
        source = from_onnx(arguments.onnx, arguments.preprocess)
    else:
        checkpoint = load_checkpoint(example_checkpoint(say=note) if example else arguments.checkpoint)
        if not checkpoint.finished:
            note(f"{checkpoint.path}: {unfinished(checkpoint.history, checkpoint.recipe)}")
        source = from_checkpoint(checkpoint)
    name = (arguments.onnx or arguments.checkpoint or ARTIFACTS).stem
    out = arguments.out or (ARTIFACTS if example else Path("artifacts") / name)
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
        threads=arguments.threads,
    )
    results = export(source, out, options, progress_bar)
    print(table(results, out))
    return DONE


def complain(message: object, code: int) -> int:
    print(f"export: {message}", file=sys.stderr)
    return code


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

    with tqdm(total=total, desc=what, unit="picture", leave=False, disable=not sys.stderr.isatty()) as bar:
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
        help="a checkpoint or its folder; without one, the embedded digits example",
    )
    add(
        "--onnx",
        type=Path,
        metavar="MODEL",
        help="a float32 ViT from elsewhere, in the place of a checkpoint",
    )
    add(
        "--preprocess",
        type=Path,
        metavar="SPEC",
        help="what the --onnx model wants to see: JSON with preprocess, mean, std and labels",
    )
    add("--fp16", action="store_true", help="also write model.fp16.onnx, for GPUs")
    add("--quantize", action="store_true", help="also write model.int8.onnx (static INT8)")
    add("--calibration", metavar="PICTURES", help="a picture folder, an IDX folder, fashion-mnist or digits")
    add(
        "--evaluate",
        metavar="PICTURES",
        help="measure drift on these (default: pictures that did not calibrate)",
    )
    add("--out", type=Path, metavar="DIR", help="where the files go (default: artifacts/NAME)")
    add(
        "--samples", type=positive, default=128, metavar="N", help="pictures to calibrate with (default: 128)"
    )
    add("--evaluation-samples", type=positive, metavar="N", help="pictures to measure with (default: all)")
    add("--max-drift", type=float, metavar="POINTS", help="fail when top-1 falls by more percentage points")
    add("--min-agreement", type=float, metavar="PERCENT", help="fail when fewer pictures keep their label")
    add(
        "--target",
        choices=("auto", "vnni", "avx2", "arm64"),
        default="auto",
        help="the CPU that INT8 is made for",
    )
    add("--plan", type=Path, metavar="PLAN", help="quantise by this plan.json instead of calibrating")
    add("--keep-float", nargs="+", default=[], metavar="LAYER", help="layers to leave in float32")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
