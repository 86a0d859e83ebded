"""Command line `python -m runtime MODEL IMAGES`: classify images."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from runtime.batch.options import add_options, check_options
from runtime.command import run_command

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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    return run_command("runtime", lambda: _run_on_ray(options) if options.engine == "ray" else _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime",
        description="Classify images with a model made by python -m export.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return parser


def _run_on_ray(options: argparse.Namespace) -> int:
    from runtime.batch.ray_command import run

    return run(options)


def _run(options: argparse.Namespace) -> int:
    check_options(options)
    if options.embeddings is not None:
        from runtime.batch.embeddings import run
    else:
        from runtime.batch.labels import run
    _allow_pixels(options.max_pixels)
    return run(options)


def _quiet() -> None:
    """Keep what Pillow and the libraries below it say of odd images off the terminal: results say it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there itself


def _allow_pixels(limit: int) -> None:
    """Move Pillow's own limit, which is the process's, to where the user set ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = limit


if __name__ == "__main__":
    _quiet()
    sys.exit(main())
