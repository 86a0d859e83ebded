"""python -m vit summary and python -m vit plots: look inside a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.command.line import is_installed
from runtime.command.locking import only_writer
from runtime.command.parser import REQUIRED, argument, option
from runtime.command.progress import Step, print_for_people
from runtime.errors import MissingPackageError, install_line
from runtime.text import suggest
from runtime.writing import OutputError, check_folder


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """Print the layers, shapes, parameters and multiply-adds of a checkpoint or a named size."""

    model: str = argument(REQUIRED, "checkpoint, or one of tiny, small, base, large, huge", metavar="MODEL")


def run_summary(options: SummaryOptions) -> None:
    """Print the structure of a checkpoint or a named size."""
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


@dataclass(frozen=True, kw_only=True)
class PlotsOptions:
    """Draw what a run has learned as PNG files and one HTML page that says what to look for in each."""

    run: Path = argument(REQUIRED, "checkpoint or folder of a run", metavar="RUN")
    data: str | None = option(
        None, "images for confusion, attention and mistakes; their test split is used if there is one"
    )
    out: Path | None = option(None, "folder for the plots (default: RUN/plots)")


def run_plots(options: PlotsOptions) -> None:
    """Draw the plots of a run and print the path of their page."""
    if not is_installed("matplotlib"):
        raise MissingPackageError(f"matplotlib is not installed; {install_line('train,cpu,plots')}")
    from vit.data.datasets import describe_shared_names, refuse_among_classes
    from vit.document import CheckpointError, find_checkpoint, read_document
    from vit.training.setup import open_test_images

    document = read_document(options.run)
    labels = document.labels
    if options.data and document.thresholds is not None:
        instead = "python -m export --evaluate TABLE measures it"
        raise CheckpointError(f"--data judges one label per image, and this model gives several; {instead}")
    out = options.out or find_checkpoint(options.run).parent / "plots"
    if options.data:
        refuse_among_classes(out, options.data)
    check_folder(out)
    images = open_test_images(options.data, labels) if options.data else None
    if images is not None and (sentence := describe_shared_names(images)):
        print_for_people(f"note: {sentence}")
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
