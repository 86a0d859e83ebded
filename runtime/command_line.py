"""The options of `python -m runtime MODEL IMAGES`, and the work that they choose."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from .batch.options import RunOptions, check_run_options
from .command.file_kinds import detect_file_kind
from .command.line import PACKAGE, run_command
from .command.parser import Parser, options_from
from .interrupts import raise_on_signal

_EXAMPLES = """
Each image gives one line with path, label, index (of the class), score (0 to 1), top (the best candidates:
label, index, score) and error (null, or why there is no label). Progress and a summary go to standard error.

examples:
  {prog} artifacts/flowers holiday/ --output labels.jsonl
  {prog} model.int8.onnx photos/ --output labels.jsonl --resume     after an interruption
  {prog} model.int8.onnx photos/ --sort-into sorted/ --output labels.csv
  {prog} artifacts/flowers --check            is this device right? --check --help says more
  find / -name '*.jpg' -print0 | {prog} model.int8.onnx - --null > labels.jsonl

Formats: those of Pillow; HEIC with pillow-heif, JPEG XL with pillow-jxl-plugin, raw photos with rawpy.

Exit codes: 0 every image was read, 1 some images failed or the disk is full, 2 wrong use, 130 interrupted.
"""


PROG = f"python -m {PACKAGE}"


def main(arguments: Sequence[str] | None = None, *, prog: str = PROG) -> int:
    """Run the command line and return its exit code; `prog` is the command as it was typed."""
    parser = make_parser(prog)
    words = sys.argv[1:] if arguments is None else arguments
    if "--check" in words:
        from .self_test.command import main as check

        return check([word for word in words if word != "--check"], prog=f"{prog} --check")
    if len(words) == 1 and detect_file_kind(words[0])[0] == "image":
        parser.error(f"expected a model and images, found an image alone; {prog} MODEL {words[0]}")
    options = options_from(RunOptions, parser.parse_args(arguments))
    return run_command(
        PACKAGE, lambda: _run_on_ray(options) if options.engine == "ray" else _run(options), extra="cpu"
    )


def make_parser(prog: str) -> Parser:
    """Return the parser of the command line; `prog` is the command as it was typed."""
    parser = Parser(
        prog=prog,
        options=RunOptions,
        first_word=PACKAGE,
        epilog=_EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_version()
    return parser


def _run_on_ray(options: RunOptions) -> int:
    with raise_on_signal():  # Ray starts processes, which have to be ended
        from .batch.ray_engine import run_on_ray

        return run_on_ray(options)


def _run(options: RunOptions) -> int:
    from PIL import Image

    from .images.other_formats import register_openers

    check_run_options(options)
    register_openers()
    Image.MAX_IMAGE_PIXELS = options.max_pixels  # Pillow's own limit, which is the process's
    if options.embeddings is not None:
        from .batch.embed_images import embed_images as embed

        return embed(options, Path(options.embeddings))
    from .batch.label_images import label_images as label

    return label(options)


def run_quietly(arguments: Sequence[str] | None = None, *, prog: str = PROG) -> int:
    """Run the command line in a process of its own: no library but this one writes to the terminal.

    What Pillow and the libraries below it say of odd images, results say.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    try:
        kept = os.dup(2)
    except OSError:  # pythonw: there is no terminal
        return main(arguments, prog=prog)
    sys.stderr = os.fdopen(kept, "w", buffering=1, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there itself
    return main(arguments, prog=prog)
