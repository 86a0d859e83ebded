"""Write a few of the digits that the example was not trained on as PNG files, to be classified."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.command.line import run_command
from runtime.command.parser import Parser
from runtime.interrupts import run_interruptible
from runtime.writing import check_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(prog="python -m tools.digit_images", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")
    parser.add_argument("--count", type=_count, default=10, help="how many, 1 to 360 (default: %(default)s)")
    options = parser.parse_args(arguments)

    def work() -> int:
        check_folder(options.out)
        write_digits(options.out, options.count)
        return 0

    return run_command("digit_images", work)


def _count(text: str) -> int:
    """Parse a number of digits."""
    if not text.isdecimal() or not 1 <= int(text) <= 360:
        raise argparse.ArgumentTypeError(f"expected 1 to 360, found {text!r}")
    return int(text)


def write_digits(folder: Path, count: int) -> list[Path]:
    """`count` of the 360 held-out digits as `<row>-is-<digit>.png`, spread over the classes."""
    import numpy as np
    from PIL import Image

    from vit.data.datasets import open_images

    images = open_images("digits", "test")
    targets, labels = images.targets, images.labels
    assert targets is not None  # digits have classes
    assert labels is not None
    by_class = np.argsort(targets, kind="stable")
    rows = by_class[np.linspace(0, len(by_class) - 1, count).round().astype(np.int64)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in rows:
        path = folder / f"{row:03d}-is-{labels[targets[row]]}.png"
        Image.fromarray(np.ascontiguousarray(images[int(row)])).save(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(run_interruptible("digit_images", main))
