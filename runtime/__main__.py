"""Command line `python -m runtime MODEL IMAGES`: classify images."""

from __future__ import annotations

import argparse
import codecs
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.batch.cluster_options import add_cluster
from runtime.command import complain, positive, run_command
from runtime.cpu import available_cores
from runtime.errors import DONE, FAILED, INTERRUPTED, InputError

if TYPE_CHECKING:
    from runtime.batch.output import Done, Lines
    from runtime.batch.report import Report
    from runtime.batch.sorting import Sorter
    from runtime.classifier import Classifier
    from runtime.results import Result

_EXAMPLES = """
Each image gives one line with path, label, index (of the class), score (0 to 1), top (the best candidates:
label, index, score) and error (null, or why there is no label). Progress and a summary go to standard error.

examples:
  python -m runtime artifacts/flowers holiday/ --output labels.jsonl
  python -m runtime model.int8.onnx photos/ --output labels.jsonl --resume     after a crash, or a power cut
  python -m runtime model.int8.onnx photos/ --sort-into sorted/ --output labels.csv
  find / -name '*.jpg' -print0 | python -m runtime model.int8.onnx - --null > labels.jsonl

exit codes: 0 every image was read, 1 some have no answer, or the work broke off, 2 wrong use, 130 interrupted
"""


class _UsageError(InputError):
    """A command line that cannot be carried out; the message says what to type instead."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    return run_command("runtime", lambda: _run_on_ray(options) if options.engine == "ray" else _run(options))


def _quiet() -> None:
    """Keep what Pillow and the libraries below it say of odd images off the terminal: results say it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there itself


def _run_on_ray(options: argparse.Namespace) -> int:
    from runtime.batch.ray_command import run

    return run(options)


def _run(options: argparse.Namespace) -> int:
    from runtime.classifier import Classifier

    _check(options)
    if options.embeddings is not None:
        from runtime.batch import embeddings

        _allow_pixels(options.max_pixels)
        return embeddings.run(options, lambda: _images(options))
    _allow_pixels(options.max_pixels)
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
    return _classify_all(classify, options)


def _classify_all(classify: Classifier, options: argparse.Namespace) -> int:
    from runtime.batch.output import Done, Lines, begin, format_of
    from runtime.batch.report import Report
    from runtime.batch.sorting import Sorter

    output = options.output and Path(options.output)
    done = Done(iter(()))
    if output is not None:
        done = begin(output, classify.info.sha256, resume=options.resume, overwrite=options.overwrite)
    total = sum(1 for _ in _images(options)) if sys.stderr.isatty() and "-" not in options.images else None
    report = Report(total)
    sorter = options.sort_into and Sorter(options.sort_into, classify.info.labels, copy=options.copy)
    lines = Lines(output, options.format or format_of(output))
    results = classify.stream(
        _not_done(_images(options), done, report), workers=options.workers, ordered=not options.unordered
    )
    try:
        _write_all(results, lines, report, sorter)
    except KeyboardInterrupt:
        lines.close()
        return _end(report, INTERRUPTED, "interrupted" + _how_to_go_on(output))
    except BrokenPipeError:
        raise
    except OSError as error:
        lines.abandon()
        return _end(report, FAILED, _explain(error) + _how_to_go_on(output))
    lines.close()
    if report.seen == 0:
        raise _UsageError(f"no images in {', '.join(options.images)}")
    return _end(report, FAILED if report.failed else DONE, "")


def _write_all(results: Iterator[Result[Path]], lines: Lines, report: Report, sorter: Sorter | None) -> None:
    for result in results:
        if sorter is not None and result.prediction is not None and result.prediction.index is not None:
            sorter.put(result.image, result.prediction.index)
        lines.write(result)
        report.add(result)


def _images(options: argparse.Namespace) -> Iterator[Path]:
    from runtime.files import find_images

    for given in options.images:
        named: Iterable[Path] = _standard_input(options.null) if given == "-" else [Path(given)]
        yield from find_images(named, skip=options.sort_into)


def _standard_input(null: bool) -> Iterator[Path]:
    """Yield the paths on standard input, one per line, or each ended by a zero byte."""
    for number, name in enumerate(_pieces(b"\0" if null else b"\n")):
        if not null:  # Windows ends lines with CR LF, and its editors begin a file with a byte order mark
            name = (name.removeprefix(codecs.BOM_UTF8) if number == 0 else name).removesuffix(b"\r")
        if name:
            yield Path(os.fsdecode(name))


def _pieces(end: bytes) -> Iterator[bytes]:
    """Yield the bytes of standard input between `end`s, as they come."""
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 2**16):
        *names, rest = (rest + chunk).split(end)
        yield from names
    yield rest


def _not_done(images: Iterator[Path], done: Done, report: Report) -> Iterator[Path]:
    for image in images:
        if done.take(image):
            report.skip()
        else:
            yield image


def _check(options: argparse.Namespace) -> None:
    for given in options.images:
        if given != "-" and not os.path.lexists(given):
            raise _UsageError(f"{given}: no such image or folder")
    if options.resume and options.overwrite:
        raise _UsageError("expected --resume (go on with the file) or --overwrite (replace it), found both")
    if options.output is None and options.embeddings is None and (options.resume or options.overwrite):
        raise _UsageError("--resume and --overwrite need --output FILE")
    if options.output is not None and not (folder := Path(options.output).absolute().parent).is_dir():
        raise _UsageError(f"{folder}: no such folder, make it first")
    if options.output is not None:
        _must_not_replace_an_input(options)
    if options.format == "parquet":
        raise _UsageError("--format parquet needs --engine ray; on one machine: jsonl or csv")
    if options.address is not None:
        raise _UsageError("--address needs --engine ray")
    if options.copy and not options.sort_into:
        raise _UsageError("--copy needs --sort-into DIR")


def _must_not_replace_an_input(options: argparse.Namespace) -> None:
    """Refuse an output that is the model or an image named on the command line."""
    output = Path(options.output)
    if not output.exists():
        return
    for given in (options.model, *options.images):
        if str(given) != "-" and Path(given).exists() and output.samefile(given):
            raise _UsageError(f"{options.output}: it is an input of this command; give another --output")


def _allow_pixels(limit: int) -> None:
    """Move Pillow's own limit, which is the process's, to where the user set ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = limit


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "the disk is full: free some space"
    return f"{error.filename or 'the output'}: {error.strerror or error}"


def _how_to_go_on(output: Path | None) -> str:
    return f"; what is done is in {output}, the same command with --resume goes on" if output else ""


def _end(report: Report, code: int, why: str) -> int:
    report.clear()
    print(report.summary(), file=sys.stderr)
    return complain("runtime", why, code) if why else code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="Classify images with a model made by python -m export.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="an .onnx file, or the folder that the export wrote")
    add("images", nargs="+", metavar="IMAGES", help="files and folders; - reads paths from standard input")
    add(
        "--output",
        type=_output,
        metavar="FILE",
        help="write here (.jsonl or .csv) and not to standard output (which is also -)",
    )
    add(
        "--format",
        choices=["jsonl", "csv", "parquet"],
        help="default: by the output's name, else jsonl; on a cluster parquet (or jsonl)",
    )
    add(
        "--embeddings",
        metavar="FILE",
        help="write embeddings, not labels: FILE.npy with FILE.jsonl (the path of each row), or FILE.parquet",
    )
    add("--resume", action="store_true", help="go on with --output FILE after an interruption")
    add("--overwrite", action="store_true", help="replace --output FILE")
    add(
        "--unordered",
        action="store_true",
        help="give results as they are ready, not in the order of the images",
    )
    add("--sort-into", type=Path, metavar="DIR", help="link each image into DIR/<label>/")
    add("--copy", action="store_true", help="with --sort-into: copies, not links")
    add("--top", type=positive, default=5, metavar="N", help="candidates in each line (default 5)")
    add(
        "--min-score",
        type=_score,
        metavar="SCORE",
        help="below this score, 0 to 1, a line has no label and says unsure (default: every image gets one)",
    )
    add(
        "--device", choices=_devices(), default="auto", help="default auto: CUDA where it works, else the CPU"
    )
    add(
        "--workers",
        type=positive,
        metavar="N",
        help=f"images at a time (default: the cores, {available_cores()})",
    )
    add(
        "--max-pixels",
        type=positive,
        default=89_478_485,
        metavar="N",
        help="refuse larger images (default %(default)s)",
    )
    add("--sha256", metavar="HEX", help="refuse a model file with another digest")
    add("--null", action="store_true", help="paths on standard input end in zero bytes, not newlines")
    add_cluster(parser)
    return parser


def _score(text: str) -> float:
    """Parse a score, 0 to 1."""
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, found {text!r}")
    return score


def _output(text: str) -> str | None:
    """Parse the name of an output: a file, on a cluster any URI, or - for standard output."""
    return None if text == "-" else text


def _devices() -> list[str]:
    return ["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml"]


if __name__ == "__main__":
    _quiet()
    sys.exit(main())
