"""Find near-duplicates and look-alikes in a folder of images, with numpy alone.

    python -m runtime MODEL PHOTOS --embeddings photos.npy
    python examples/lookalikes.py photos.npy                        pairs that show nearly the same
    python examples/lookalikes.py photos.npy --like holiday/1.jpg   the images most like one of them

MODEL was exported with --embedding. The file photos.jsonl beside the array has the path of each row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS = 256  # images compared with all others at a time: 256 x 100,000 cosines take 100 MB
Rows = NDArray[np.float32]


def find_near_duplicates(rows: Rows, least: float) -> Iterator[tuple[float, int, int]]:
    """Yield the pairs of images whose cosine is `least` or more: cosine, one index, the other.

    Args:
        rows: float32 [images, D], each of length 1.
        least: cosine, -1 to 1; 0.95 finds copies that were resized or compressed again.
    """
    for start in range(0, len(rows), ROWS):
        alike = rows[start : start + ROWS] @ rows[start:].T
        for first, second in np.argwhere(alike >= least):
            if second > first:  # each pair once, and no image with itself
                yield float(alike[first, second]), start + int(first), start + int(second)


def rank_by_similarity(rows: Rows, index: int, count: int) -> list[tuple[float, int]]:
    """Return the images most similar to one of them, best first: cosine and index.

    Args:
        rows: float32 [images, D], each of length 1.
        index: the image that the others are compared with.
        count: how many to return.
    """
    cosines = rows @ rows[index]
    order = [int(each) for each in np.argsort(-cosines, kind="stable") if each != index]
    return [(float(cosines[each]), each) for each in order[:count]]


def read(embeddings: Path) -> tuple[Rows, list[str]]:
    """Return the rows of a .npy file, and the path of each from the .jsonl file beside it."""
    rows = np.load(embeddings, mmap_mode="r")
    lines = embeddings.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    return rows, [json.loads(line)["path"] for line in lines]


def main(arguments: list[str] | None = None) -> int:
    """Print one line per pair, the most alike first."""
    parser = argparse.ArgumentParser(
        description="Find near-duplicates and look-alikes among embedded images."
    )
    parser.add_argument("embeddings", type=Path, help="the .npy file of python -m runtime --embeddings")
    parser.add_argument(
        "--like", metavar="IMAGE", help="list what is most like this image, one of the folder's"
    )
    parser.add_argument("--least", type=float, default=0.95, help="cosine of a pair (default 0.95)")
    parser.add_argument("--count", type=int, default=10, help="images that --like lists (default 10)")
    options = parser.parse_args(arguments)
    try:
        rows, paths = read(options.embeddings)
    except FileNotFoundError as error:
        parser.error(f"{error.filename}: no such file; python -m runtime MODEL PHOTOS --embeddings makes it")
    except ValueError as error:
        parser.error(
            f"{options.embeddings}: expected the .npy file of python -m runtime --embeddings ({error})"
        )
    if len(paths) != len(rows):
        parser.error(
            f"expected {len(rows)} paths beside {options.embeddings}, found {len(paths)}; make both again"
        )
    if options.like is None:
        pairs = sorted(find_near_duplicates(rows, options.least), reverse=True)
        for cosine, first, second in pairs:
            print(f"{cosine:.4f}  {paths[first]}  {paths[second]}")
        if not pairs:
            found = f"no pair has a cosine of {options.least:g} or more (images: {len(rows)})"
            print(f"{found}; try a lower --least", file=sys.stderr)
        return 0
    if options.like not in paths:
        parser.error(
            f"{options.like} is not among the {len(paths)} embedded images; give a path as in the .jsonl"
        )
    for cosine, other in rank_by_similarity(rows, paths.index(options.like), options.count):
        print(f"{cosine:.4f}  {paths[other]}")
    if len(paths) == 1:
        print(f"{options.like} is the only image; embed more of them", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
