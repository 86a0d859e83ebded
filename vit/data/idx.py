"""IDX, the file format of MNIST and of the data sets that replace it."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

FASHION_LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
PREFIXES = {"train": "train", "test": "t10k"}


def find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the image file and the label file of each split in `folder`; empty when there are none."""
    found = {}
    for split, prefix in PREFIXES.items():
        images, labels = _find_file(folder, prefix, "images", 3), _find_file(folder, prefix, "labels", 1)
        if images and labels:
            found[split] = (images, labels)
    return found


def _find_file(folder: Path, prefix: str, kind: str, rank: int) -> Path | None:
    # Both spellings are in use: some archives unpack to the dot.
    names = [f"{prefix}-{kind}{dash}idx{rank}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """Return the `uint8` array of any rank in an IDX file, gzipped or not.

    Raises:
        ValueError: naming the file, when it is no IDX file of bytes or is cut off.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path}: expected an IDX file of bytes, found one that begins with {data[:4].hex()}"
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{path}: the IDX file is cut off in its header; copy it again")
    shape = struct.unpack(f">{rank}I", data[4:start])
    expected = int(np.prod(shape, dtype=np.int64))
    if (found := len(data) - start) != expected:
        raise ValueError(f"{path}: expected {expected} bytes of data, found {found}; copy it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_labels(folder: Path, classes: int) -> tuple[str, ...]:
    """Return the labels of IDX files: those of Fashion-MNIST by the folder's name, else class indices."""
    if "fashion" in str(folder).lower() and classes == len(FASHION_LABELS):
        return FASHION_LABELS
    return tuple(str(index) for index in range(classes))
