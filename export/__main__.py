"""The command line: `python -m export CHECKPOINT --quantize --calibration IMAGES --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.arguments import add_arguments
from runtime.command import run_command
from runtime.errors import DONE, InputError, MissingPackageError, install_line
from vit.data.public import public_command

if TYPE_CHECKING:
    from export.source import Source


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    command = parser(prog)
    options = command.parse_args(arguments)
    if options.onnx is not None and options.checkpoint is not None:
        command.error("expected a checkpoint or --onnx MODEL, found both")
    if options.onnx is None and options.preprocess is not None:
        command.error("--preprocess SPEC describes an ONNX model: add --onnx MODEL")
    words = sys.argv[1:] if arguments is None else arguments
    options.command = public_command(["python", "-m", "export", *words])
    stopped = "stopped; the files of the last export are as they were"
    extra = "export" if options.onnx is None else "onnx"
    return run_command("export", lambda: run(options), stopped=stopped, extra=extra)


def run(arguments: argparse.Namespace) -> int:
    from export.example import ARTIFACTS, IMAGES, example_checkpoint
    from export.measure.environment import target_here
    from export.options import Options
    from export.pipeline import export
    from export.report.terminal import table
    from export.source import from_onnx
    from runtime.images.openers import register_openers

    register_openers()
    example = arguments.checkpoint is None and arguments.onnx is None
    if example and arguments.calibration is None:
        arguments.calibration = IMAGES
    if arguments.onnx is not None:
        source = from_onnx(arguments.onnx, arguments.preprocess)
    else:
        source = checkpoint_source(example_checkpoint(say=note) if example else arguments.checkpoint)
    say_of(source, arguments.calibration, arguments.evaluate)
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
        command=arguments.command,
    )
    print(table(export(source, out, options, progress_bar, say=note), out))
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
            f"{path}: a checkpoint needs PyTorch; {install_line('export')}; an ONNX model does not: "
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


def say_of(source: Source, *folders: str | None) -> None:
    """Say what was chosen or assumed of a source, and what in the folders of images is not taken."""
    from vit.data.folders import passed_over

    for sentence in source.notes:
        note(sentence)
    for folder in dict.fromkeys(folder for folder in folders if folder is not None):
        for sentence in passed_over(folder):
            note(sentence)
    for sentence in source.description.get("assumed", ()):
        note(f"assumed, since the source does not say: {sentence}")


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


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Turn a checkpoint into ONNX files for a device; measure them against the float model.",
        epilog="Exit codes: 0 done; 1 the export failed or drifts too far, nothing was written; 2 wrong use.",
    )
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
