"""The parser of `python -m export CHECKPOINT --quantize --calibration IMAGES --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from export.command.arguments import add_arguments
from export.command.checks import check_all, check_combinations, is_example
from export.graph.skipped import collect_skipped
from export.measure.inference import Progress
from export.options import Options, choose_target
from export.sources.read_source import IMAGES, cadence, door_of, note, step
from export.sources.source import Source
from runtime.command.line import Parser, run_command
from runtime.command.locking import only_writer
from runtime.errors import DONE
from runtime.images.other_formats import register_openers
from vit.data.folders import describe_unread_folders
from vit.data.public import public_command

# --- The work of `python -m export`: check everything that can be known, then export ---


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be known first, then export."""
    check_combinations(arguments)
    cadence.cache_clear()
    register_openers()
    if is_example(arguments) and arguments.calibration is None:
        arguments.calibration = IMAGES
    options = options_of(arguments)
    door = door_of(arguments.checkpoint, arguments.onnx, arguments.preprocess)
    out = arguments.out or door.out
    with step("looking at the model and the images"):
        images = check_all(options, door.known(), out)
    with only_writer(out), collect_skipped(arguments.verbose) as skipped:
        source = door.open()
        say_of(source, arguments.calibration, arguments.evaluate)
        from export.pipeline import export

        results = export(source, out, options, progress, images, say=note)
    print(results.to_text(out))
    if arguments.verbose:
        print("\n".join(skipped.lines()))
    return DONE


def say_of(source: Source, *folders: str | None) -> None:
    """Say what was chosen or assumed of a source, and what in the folders of images is not taken."""
    for sentence in source.notes:
        note(sentence)
    for folder in dict.fromkeys(folder for folder in folders if folder is not None):
        for sentence in describe_unread_folders(folder):
            note(sentence)
    for sentence in source.description.get("assumed", ()):
        note(f"assumed, since the source does not say: {sentence}")


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the options of the export that a command line asks for."""
    names = {field.name for field in fields(Options)}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    return Options(
        **values
        | {
            "evaluation": arguments.evaluate,
            "half": arguments.fp16,
            "target": choose_target() if arguments.target == "auto" else arguments.target,
            "keep_float": tuple(arguments.keep_float),
        }
    )


@contextmanager
def progress(what: str, total: int = 0, unit: str = "image") -> Iterator[Progress]:
    """Show one long step of the export."""
    with step(what, total, unit) as shown:
        yield shown.update


# --- The parser of `python -m export CHECKPOINT --quantize --calibration IMAGES --out DIR` ---


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    options = parser(prog).parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    options.command = public_command(["python", "-m", "export", *words])
    extra = "export" if options.onnx is None else "onnx"
    stopped = "stopped; the files of the last export are as they were"

    def work() -> int:
        pass

        return run(options)

    return run_command("export", work, stopped=stopped, extra=extra)


def parser(prog: str) -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=prog,
        description="Turn a checkpoint into ONNX files for a device; measure them against the float model.",
    )
    parser.name = "export"
    add_arguments(parser)
    parser.add_version()
    parser.add_examples(
        "runs/flowers --quantize --calibration PHOTOS",
        "runs/flowers --quantize --calibration PHOTOS --max-drift 0.5",
        "--onnx vit-onnx/ --quantize --calibration PHOTOS",
        rest="Exit codes: 0 done; 1 the export failed, or a variant misses a limit: nothing was written;\n"
        "2 wrong use; 130 interrupted.",
    )
    return parser
