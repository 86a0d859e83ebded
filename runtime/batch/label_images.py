"""python -m runtime MODEL IMAGES: one result line per image, in a file or on standard output."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..classifier import Classifier
from ..command.line import PACKAGE, divert_standard_output, print_error
from ..command.locking import only_writer
from ..command.progress import is_on_terminal
from ..errors import DONE, FAILED, INTERRUPTED, ImageError
from ..interrupts import raise_on_signal
from ..results import Result
from ..text import format_count, make_printable
from .field_report import start_monitor, write_field_report
from .inputs import list_images, no_images
from .keep_unsure import MOST_KEPT, UnsureImages, check_keep_unsure, read_records
from .options import RunOptions
from .output import (
    FIELDS,
    SEVERAL_FIELDS,
    Format,
    Lines,
    choose_output_format,
    format_record,
    is_resumable,
    open_output,
)
from .sorting import Sorter
from .tally import Report, print_model


def label_images(options: RunOptions) -> int:
    """Classify the images, write one line for each, and return the exit code."""
    check_keep_unsure(options.keep_unsure, options.limit)
    with divert_standard_output():
        classify = Classifier(
            options.model,
            device=options.device,
            threads=1,  # for one image; the workers are what keeps the cores busy
            top=options.top,
            min_score=options.min_score,
            max_pixels=options.max_pixels,
            sha256=options.sha256,
            device_options=options.device_options,
        )
        if options.verbose:
            print_model(classify.info)
        classify.warm_up()
        if options.monitor:
            start_monitor(classify, "logits", options.min_score)
    # Two runs that sort into one folder would replace each other's links where images share a name.
    with only_writer(options.sort_into) if options.sort_into else nullcontext():
        return _classify_all(classify, options)


def _classify_all(classify: Classifier, options: RunOptions) -> int:
    output = None if options.output is None else Path(options.output)
    into, several = options.sort_into, classify.info.thresholds is not None
    sorter = None if into is None else Sorter(into, classify.info.labels, copy=options.copy)
    settings = {
        "model": classify.info.sha256,
        "top": options.top,
        "min_score": options.min_score,
        "sort_into": None if into is None else str(into),
    }
    form = cast("Format | None", options.format) or choose_output_format(output)  # parquet is refused
    lines, done = open_output(
        output,
        form,
        settings,
        resume=options.resume,
        overwrite=options.overwrite,
        fields=SEVERAL_FIELDS if several else FIELDS,
    )
    unsure = None
    if options.keep_unsure is not None:
        unsure = UnsureImages(options.limit or MOST_KEPT, options.min_score)
        if options.resume and output is not None and is_resumable(output):
            for record in read_records(output, form):
                unsure.offer(record)
    images = partial(
        list_images, options.images, null=options.null, skip=options.sort_into, all_files=options.all_files
    )
    countable = is_on_terminal() and "-" not in options.images
    report = Report(sum(1 for _ in images()) if countable else None)
    report.no_label = "without a label" if several else report.no_label
    results = classify.stream(
        done.skip(images(left_out=report.left_out), report),
        workers=options.workers,
        ordered=not options.unordered,
    )
    try:
        with raise_on_signal():
            _write_all(results, lines, report, sorter, unsure)
            lines.close()
    except KeyboardInterrupt:
        lines.close()
        report.clear()
        message = f"interrupted after {format_count(report.found, 'image')}"
        return print_error(PACKAGE, message + _explain_resume(output), INTERRUPTED)
    except BrokenPipeError:
        raise
    except OSError as error:
        lines.abandon()
        return report.end(FAILED, _explain(error) + _explain_resume(output))
    if report.found == 0:
        raise no_images(options.images, report.left_out.counts)
    code = report.end(FAILED if report.tally.failed else DONE)
    if unsure is not None and options.keep_unsure is not None:
        print(make_printable(unsure.write(options.keep_unsure, classify.info.labels)), file=sys.stderr)
    write_field_report(classify, output)
    return code


def _write_all(
    results: Iterator[Result[Path]],
    lines: Lines,
    report: Report,
    sorter: Sorter | None,
    unsure: UnsureImages | None,
) -> None:
    for result in results:
        found = result.prediction
        named: Sequence[Any] = () if found is None or found.index is None else (found.labels or (found,))
        if sorter is not None:
            try:
                for each in named:
                    sorter.put(result.image, each.index)
            except ImageError as error:  # it was removed after it was read
                result = Result(result.image, None, error.reason)
        lines.write(result)
        if unsure is not None:
            unsure.offer(format_record(result))
        if result.prediction is None:
            report.add(result.image, error=result.error or "")
        else:  # below --min-score it has no label, and `error` says so: that is no failure
            others = [each.label for each in named[1:]]
            report.add(result.image, label=result.prediction.label, others=others)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "the disk is full: free some space"
    return f"{error.filename or 'the output'}: {error.strerror or error}"


def _explain_resume(output: Path | None) -> str:
    if output is None or not is_resumable(output):
        return ""
    return f"; what is done is in {output}, the same command with --resume continues"
