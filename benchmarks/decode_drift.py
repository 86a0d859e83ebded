"""Changes in the answers of a model when large JPEGs are decoded in draft mode.

    python -m benchmarks.decode_drift MODEL PHOTOS [--count 50] [--size 4000 3000]

The photos are enlarged to `--size`, as a phone makes them, and classified twice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.throughput import enlarge
from benchmarks.timing import images_in
from runtime import find_images, read_metadata
from runtime.command.line import run_command
from runtime.session import open_session
from runtime.writing import temporary_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args(arguments)
    return run_command("benchmarks.decode_drift", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    metadata = read_metadata(options.model)
    images_in(options.photos)
    session = open_session(options.model, device="cpu", target=metadata.target)
    full, draft = (replace(metadata.preprocess, decode=way) for way in ("full", "draft"))
    with temporary_folder() as folder:
        enlarge(options.photos, folder, options.count, tuple(options.size))
        pixels = [[way(path) for path in find_images(folder)] for way in (full, draft)]
    first, second = (
        np.concatenate([session.run(["logits"], {"pixels": image[None]})[0] for image in way])
        for way in pixels
    )
    apart = np.abs(np.stack(pixels[0]).astype(int) - np.stack(pixels[1])).mean()
    agreement = 100 * (first.argmax(1) == second.argmax(1)).mean()
    noise = ((first - second) ** 2).sum()
    sqnr = 10 * np.log10((first**2).sum() / noise) if noise else np.inf
    print("| JPEGs | images | same top-1 | SQNR of logits | pixels apart |\n|---|---|---|---|---|")
    print(
        f"| {options.size[0]} x {options.size[1]} | {len(first)} | {agreement:.1f} % | {sqnr:.1f} dB "
        f"| {apart:.2f} of 255 |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
