"""The command line of `python -m export`: its parser, the checks before weights are read, and the export."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from export.options import Options
from runtime.command.line import run_command
from runtime.command.locking import only_writer
from runtime.command.parser import Parser, options_from
from runtime.command.progress import Cadence, Step, print_for_people
from runtime.errors import DONE
from runtime.writing import write_atomically

if TYPE_CHECKING:
    from calibration.plan import QuantizationPlan
    from export.check_results import DriftError
    from export.measure.inference import Progress
    from export.sources.source import Source

PLAN_TO_TRAIN = "plan-to-train.json"  # not plan.json, which describes the model.int8.onnx beside it
_FIRST_LINE = 3.0  # seconds until a log says what the export is doing


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: None takes those of the process.
        prog: the command as it was typed, for usage.
    """
    options = options_from(Options, make_parser(prog).parse_args(arguments))
    words = sys.argv[1:] if arguments is None else arguments
    extra = "export" if options.onnx is None else "onnx"
    stopped = "stopped; the files of the last export are as they were"
    return run_command("export", lambda: _run(options, words), stopped=stopped, extra=extra)


def make_parser(prog: str) -> Parser:
    """Return the parser of the command line; `prog` is the command as it was typed."""
    parser = Parser(prog=prog, options=Options, first_word="export")
    parser.add_version()
    parser.add_examples(
        "runs/flowers --quantize --calibration PHOTOS",
        "runs/flowers --quantize --calibration PHOTOS --max-drift 0.5",
        "--onnx vit-onnx/ --quantize --calibration PHOTOS",
        rest="Exit codes: 0 done; 1 the export failed, or a variant misses a limit: no model was written;\n"
        "2 wrong use; 130 interrupted.",
    )
    return parser


def _run(options: Options, words: Sequence[str]) -> int:
    """Make all checks that need no weights, then export."""
    from export.check_options import check_combinations, check_without_weights, open_export_images
    from export.graph.skipped import collect_skipped
    from export.sources.read_source import EXAMPLE, CheckpointReader, choose_source_reader
    from runtime.images.other_formats import register_openers
    from vit.data.public import public_command

    check_combinations(options)
    register_openers()
    options = replace(options, command=public_command(["python", "-m", "export", *words]))
    if options.checkpoint is None and options.onnx is None and options.calibration is None:
        options = replace(options, calibration=EXAMPLE)
    # One clock for all steps, so that none is silent for long.
    step = partial(Step, "export", cadence=Cadence(first=_FIRST_LINE))
    reader = choose_source_reader(options.checkpoint, options.onnx, options.preprocess)
    out = options.out or Path("artifacts") / reader.name
    with step("looking at the model and the images"):
        facts = reader.read_facts()
        for sentence in facts.notes:
            _note(sentence)
        check_without_weights(options, facts, out)
        images = open_export_images(options, facts.labels, several=facts.several)
    with only_writer(out), collect_skipped(options.verbose) as skipped:
        source = reader.read_source(step)
        _report_notes(source, options)
        from export.check_results import DriftError
        from export.pipeline import export

        @contextmanager
        def progress(what: str, total: int = 0, unit: str = "image") -> Iterator[Progress]:
            with step(what, total, unit) as shown:
                yield shown.update

        try:
            results = export(source, out, options, progress, images, say=_note)
        except DriftError as error:
            trainable = isinstance(reader, CheckpointReader) and source.labels and source.trained is None
            if error.plan is None or not trainable or options.checkpoint is None:
                raise
            raise _advise_training(error, error.plan, options.checkpoint, out) from error
    print(results.to_text(out))
    if options.verbose:
        print("\n".join(skipped.lines()))
    return DONE


def _advise_training(error: DriftError, plan: QuantizationPlan, run: Path, out: Path) -> DriftError:
    """Write the plan of an INT8 model that misses a limit, and return the error with how to train with it."""
    from export.check_results import DriftError

    file = out / PLAN_TO_TRAIN
    write_atomically(file, plan.to_json().encode())
    trained = run.parent / f"{run.stem}-int8"
    command = f"python -m vit train --data PHOTOS --from {quote(str(run))} --plan {quote(str(file))}"
    return DriftError(f"{error}; or train with this plan: {command} --out {quote(str(trained))}", plan)


def _note(line: str) -> None:
    print_for_people(f"export: {line}")


def _report_notes(source: Source, options: Options) -> None:
    """Print what was chosen or assumed of a source, and what in the folders of images is not taken."""
    from vit.data.folders import describe_unread_folders

    sentences = list(source.notes)
    for folder in dict.fromkeys(each for each in (options.calibration, options.evaluate) if each is not None):
        sentences += describe_unread_folders(folder)
    assumed = source.description.get("assumed", ())
    for sentence in (*sentences, *(f"assumed, since the source does not say: {each}" for each in assumed)):
        _note(sentence)
