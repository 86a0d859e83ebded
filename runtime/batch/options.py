"""Options of `python -m runtime`, and the combinations of them that are refused."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..command.kinds import Kind, kind_of
from ..command.line import positive
from ..cpu import available_cores
from ..errors import InputError
from ..images.find_images import is_folder
from ..writing import OTHER_FORMATS, refuse_file_name

_CHECKPOINT = "model.safetensors"  # in the folder of a run
_NO_MODEL: tuple[Kind, ...] = ("zip", "archive", "array", "pickle", "page", "pointer", "others", "empty")
DEVICES = ("auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml")


class UsageError(InputError):
    """A command line that cannot be carried out; the message says what to type instead."""


_SUFFIX_OF = {"jsonl": ".jsonl", "csv": ".csv"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add every argument and option, in the order in which --help lists them."""
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="an .onnx file, or the folder that the export wrote")
    add("images", nargs="+", metavar="IMAGES", help="files and folders; - reads paths from standard input")
    _add_output(parser)
    _add_prediction(parser)
    _add_execution(parser)
    _add_cluster(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=_output,
        metavar="FILE",
        help="write the lines to this file (.jsonl or .csv); - is standard output, the default",
    )
    add(
        "--format",
        choices=["jsonl", "csv", "parquet"],
        help="default: by the name of the output, else jsonl; on a cluster parquet (or jsonl)",
    )
    add(
        "--embeddings",
        metavar="FILE",
        help="write embeddings, not labels: FILE.npy with FILE.jsonl (the path of each row), or FILE.parquet",
    )
    add("--resume", action="store_true", help="continue --output FILE after an interruption")
    add("--overwrite", action="store_true", help="replace --output FILE")
    add(
        "--unordered",
        action="store_true",
        help="write results as they are ready, not in the order of the images",
    )
    add("--sort-into", type=Path, metavar="DIR", help="link each image into DIR/<label>/")
    add("--copy", action="store_true", help="with --sort-into: copy instead of link")


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--top", type=positive, default=5, metavar="N", help="number of candidates per line (default: 5)")
    add(
        "--min-score",
        type=_score,
        metavar="SCORE",
        help="below this score, 0 to 1, a line has no label and says unsure (default: every image gets one)",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where to predict (default: auto, CUDA where it works, else the CPU)",
    )
    add(
        "--workers",
        type=positive,
        metavar="N",
        help=f"images in work at the same time (default: number of cores, here {available_cores()})",
    )
    add(
        "--max-pixels",
        type=positive,
        default=89_478_485,
        metavar="N",
        help="refuse images with more pixels (default: %(default)s)",
    )
    add("--sha256", type=_digest, metavar="HEX", help="refuse a model file with another digest")
    add(
        "--all-files",
        action="store_true",
        help="try every file in a folder as an image, whatever its suffix (default: those that Pillow reads)",
    )
    add("--null", action="store_true", help="paths on standard input end in zero bytes, not newlines")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options that mean a cluster, as a group of their own."""
    add = parser.add_argument_group(
        "on a cluster (docs/guides/cluster.md)",
        "With --engine ray, IMAGES may be URIs (s3://…) and Parquet files with a column path; --output is a "
        "folder or a URI.",
    ).add_argument
    add(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="local: this machine (default); ray: a cluster",
    )
    add(
        "--address",
        metavar="HOST:PORT",
        help="cluster to connect to (default: the variable RAY_ADDRESS)",
    )
    add(
        "--part-images",
        type=positive,
        default=1000,
        metavar="N",
        help="images in a part of the output, at most (default: %(default)s)",
    )


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together on one machine, before anything is loaded or written.

    Raises:
        UsageError: saying what to type instead.
        ArtifactError: if there is no model.
    """
    _must_exist(options)
    if options.resume and options.overwrite:
        raise UsageError("expected --resume (go on with the file) or --overwrite (replace it), found both")
    if options.output is None and options.embeddings is None and (options.resume or options.overwrite):
        raise UsageError("--resume and --overwrite need --output FILE")
    if options.output is not None and not is_folder(folder := Path(options.output).absolute().parent):
        raise UsageError(f"{folder}: no such folder, make it first")
    if options.output is not None:
        _must_not_replace_an_input(options)
    _must_fit_one_machine(options)


def _must_exist(options: argparse.Namespace) -> None:
    # these need Pillow and NumPy: --help needs neither
    from ..images.find_images import image_suffixes, suffix_of
    from ..model_file.artifact import choose_file, missing_file

    if is_folder(options.model) and (options.model / _CHECKPOINT).is_file():
        raise UsageError(_not_exported(options.model, "the checkpoint of a run"))
    model = choose_file(options.model)
    if not os.path.lexists(model):
        raise missing_file(model)
    kind, words = kind_of(model)
    if kind == "image" or suffix_of(model.name) in image_suffixes():
        raise UsageError(f"{model}: expected a model, found an image; first the model, then the images")
    if kind == "safetensors":
        raise UsageError(_not_exported(model, words))
    if kind in _NO_MODEL or (kind == "text" and suffix_of(model.name) != ".onnx"):
        raise UsageError(
            f"{model}: expected a model that python -m export made, found {words}; give its .onnx file"
        )
    for given in options.images:
        if given != "-" and not os.path.lexists(given):
            raise UsageError(f"{given}: no such image or folder")


def _not_exported(model: Path, found: str) -> str:
    return f"{model}: expected a model file, found {found}; export it first: python -m export {model}"


def _must_fit_one_machine(options: argparse.Namespace) -> None:
    if options.format == "parquet":
        raise UsageError("--format parquet needs --engine ray; on one machine: jsonl or csv")
    if options.output is not None:
        _must_keep_its_promise(Path(options.output), options.format)
    elif options.embeddings is None and sys.stdout is None:
        raise UsageError("standard output is closed, and the lines go there; give --output FILE")
    if options.address is not None:
        raise UsageError("--address needs --engine ray")
    if options.copy and not options.sort_into:
        raise UsageError("--copy needs --sort-into DIR")
    if options.sort_into is not None:
        _must_be_sortable(options.sort_into, options.images)
    if options.null and "-" not in options.images:
        raise UsageError("--null is about paths on standard input: add -")


def _must_be_sortable(into: Path, images: list[str]) -> None:
    """Refuse a folder to sort into that cannot be one, or whose images are to be read."""
    if os.path.lexists(into) and not is_folder(into):
        raise UsageError(f"{into}: expected a folder to sort into, found a file")
    refuse_file_name(into)
    for given in images:
        if given != "-" and _is_same(into, given):
            raise UsageError(
                f"{given}: its images would not be read, since --sort-into names it; give another folder"
            )


def _must_not_replace_an_input(options: argparse.Namespace) -> None:
    """Refuse an output that is the model or an image named on the command line."""
    for given in (options.model, *options.images):
        if str(given) != "-" and _is_same(options.output, given):
            raise UsageError(f"{options.output}: it is an input of this command; give another --output")


def _must_keep_its_promise(output: Path, form: str | None) -> None:
    """Refuse a name whose suffix is of another format than the lines have."""
    suffix = output.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise UsageError(
            f"{output}: expected a name in .jsonl or .csv, the formats of an output; "
            "with another name, say --format jsonl or --format csv"
        )
    if form is not None and suffix in _SUFFIX_OF.values() and suffix != _SUFFIX_OF[form]:
        raise UsageError(
            f"{output}: expected a name in {_SUFFIX_OF[form]} for --format {form}, found {suffix}; "
            "leave --format out, or change the name"
        )


def _is_same(one: str | Path, other: str | Path) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:  # one is not there
        return False


def _score(text: str) -> float:
    """Parse a score, 0 to 1."""
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, found {text!r}")
    return score


def _digest(text: str) -> str:
    """Parse a SHA-256 in hexadecimal."""
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, found {text!r}")
    return text.lower()


def _output(text: str) -> str | None:
    """Parse the name of an output: a file, on a cluster any URI, or - for standard output."""
    return None if text == "-" else text
