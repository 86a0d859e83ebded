"""python -m runtime MODEL IMAGES: one result line per image, in a file or on standard output."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from ..classifier import Classifier
from ..command.line import PACKAGE, complain
from ..command.locking import only_writer
from ..command.progress import is_on_terminal
from ..errors import DONE, FAILED, INTERRUPTED, ImageError
from ..interrupts import careful
from ..results import Result
from ..text import counted
from .inputs import named_images, no_images
from .options import RunOptions, UsageError
from .output import Lines, format_of
from .report import Report
from .resume import Done, begin, keeps
from .sorting import Sorter


def run(options: RunOptions) -> int:
    """Classify the images, write a line for each, and return the exit code.

    Args:
        options: of `python -m runtime`.

    Raises:
        UsageError: if there are no images.
        ArtifactError: if the model cannot be used.
        OutputError: if the output cannot be begun or resumed.
    """
    classify = Classifier(
        options.model,
        device=options.device,
        threads=1,  # for one image; the workers are what keeps the cores busy
        top=options.top,
        min_score=options.min_score,
        max_pixels=options.max_pixels,
        sha256=options.sha256,
    )
    classify.warm_up()
    # Two runs that sort into one folder would replace each other's links where images share a name.
    with only_writer(options.sort_into) if options.sort_into else nullcontext():
        return _classify_all(classify, options)


def _classify_all(classify: Classifier, options: RunOptions) -> int:
    output = None if options.output is None else Path(options.output)
    into = options.sort_into
    sorter = None if into is None else Sorter(into, classify.info.labels, copy=options.copy)
    lines, done = begin(
        output,
        options.line_format or format_of(output),
        {
            "model": classify.info.sha256,
            "top": options.top,
            "min_score": options.min_score,
            "sort_into": None if into is None else str(into),
        },
        resume=options.resume,
        overwrite=options.overwrite,
    )
    countable = is_on_terminal() and "-" not in options.images
    total = sum(1 for _ in named_images(options)) if countable else None
    report = Report(total)
    results = classify.stream(
        _not_done(named_images(options, report.left_out), done, report),
        workers=options.workers,
        ordered=not options.unordered,
    )
    try:
        with careful():
            _write_all(results, lines, report, sorter)
            lines.close()
    except KeyboardInterrupt:
        lines.close()
        report.clear()
        done_now = f"interrupted after {counted(report.seen, 'image')}"
        return complain(PACKAGE, done_now + _how_to_go_on(output), INTERRUPTED)
    except BrokenPipeError:
        raise
    except OSError as error:
        lines.abandon()
        return _end(report, FAILED, _explain(error) + _how_to_go_on(output))
    if report.seen == 0:
        raise UsageError(no_images(options.images, report.left_out.counts))
    return _end(report, FAILED if report.failed else DONE, "")


def _write_all(results: Iterator[Result[Path]], lines: Lines, report: Report, sorter: Sorter | None) -> None:
    for result in results:
        if sorter is not None and result.prediction is not None and result.prediction.index is not None:
            try:
                sorter.put(result.image, result.prediction.index)
            except ImageError as error:  # it has gone since it was read
                result = Result(result.image, None, error.reason)
        lines.write(result)
        report.add(result)


def _not_done(images: Iterator[Path], done: Done, report: Report) -> Iterator[Path]:
    for image in images:
        if done.take(image):
            report.skip()
        else:
            yield image


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "the disk is full: free some space"
    return f"{error.filename or 'the output'}: {error.strerror or error}"


def _how_to_go_on(output: Path | None) -> str:
    if output is None or not keeps(output):
        return ""
    return f"; what is done is in {output}, the same command with --resume goes on"


def _end(report: Report, code: int, why: str) -> int:
    report.clear()
    print(report.summary(), file=sys.stderr)
    return complain(PACKAGE, why, code) if why else code
