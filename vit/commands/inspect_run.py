"""python -m vit summary and python -m vit plots: look inside a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.command.line import installed
from runtime.command.locking import only_writer
from runtime.command.progress import Step, tell
from runtime.errors import MissingPackageError, install_line
from runtime.text import suggest
from runtime.writing import OutputError, check_folder


def add_summary(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_summary)
    command.description = (
        "Print the layers, shapes, parameters and multiply-adds of a checkpoint or a named size."
    )
    command.add_argument(
        "model", metavar="MODEL", help="checkpoint, or one of tiny, small, base, large, huge"
    )


def run_summary(options: argparse.Namespace) -> None:
    from vit.config import SIZES
    from vit.document import CheckpointError, read_document

    named = SIZES.get(options.model)
    if named is None and not Path(options.model).exists():
        raise CheckpointError(
            f"{options.model}: expected a checkpoint, or one of {', '.join(SIZES)}, found neither"
            f"{suggest(options.model, SIZES)}"
        )
    config = named or read_document(options.model).config
    from vit.inspect.summary import format_summary

    print(format_summary(config))


def add_plots(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_plots)
    command.description = (
        "Draw what a run has learned as PNG files and one HTML page that says what to look for in each."
    )
    command.add_argument("run", type=Path, metavar="RUN", help="checkpoint or folder of a run")
    command.add_argument(
        "--data",
        help="images for confusion, attention and mistakes; their test split is used if there is one",
    )
    command.add_argument("--out", type=Path, help="folder for the plots (default: RUN/plots)")


def run_plots(options: argparse.Namespace) -> None:
    if not installed("matplotlib"):
        raise MissingPackageError(f"matplotlib is not installed; {install_line('train,cpu,plots')}")
    from vit.data.datasets import describe_shared_names, refuse_among_classes
    from vit.document import find_checkpoint, read_document
    from vit.training.setup import images_to_judge

    labels = read_document(options.run).labels
    out = options.out or find_checkpoint(options.run).parent / "plots"
    if options.data:
        refuse_among_classes(out, options.data)
    check_folder(out)
    images = images_to_judge(options.data, labels) if options.data else None
    if images is not None and (sentence := describe_shared_names(images)):
        tell(f"note: {sentence}")
    from vit.checkpoint import load_checkpoint

    try:
        from vit.inspect.page import write_plots
    except OSError as error:  # matplotlib, where neither the home nor a temporary folder can be written to
        raise OutputError(
            "matplotlib finds no folder for its cache; set MPLCONFIGDIR or TMPDIR to one that it can write to"
        ) from error

    with only_writer(out), Step("vit", "drawing"):
        page = write_plots(load_checkpoint(options.run), images, out)
    print(page)
