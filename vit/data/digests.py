"""Digests of images, by which a later step recognizes those that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from runtime.text import format_count
from vit.data.datasets import Images

MOST = 100_000  # images whose digests a checkpoint keeps: 1.5 MB


def digests(images: Images) -> list[str]:
    """Return the digest of each image's file or pixels, 12 hexadecimal digits; empty where unreadable."""
    found = []
    for item in images.items:
        try:
            data = item.read_bytes() if isinstance(item, Path) else np.ascontiguousarray(item).tobytes()
        except OSError:
            data = b""
        found.append(blake2b(data, digest_size=6).hexdigest() if data else "")
    return found


def same_images(train: Images, found: Sequence[str], **others: Images | None) -> list[str]:
    """Say which images stand in two classes, and which of other splits are trained on too.

    Args:
        train: the images to train on.
        found: their digests.
        others: the images of other splits by their names, as `val` and `test`.
    """
    first: dict[str, int] = {}
    twice = []
    for index, digest in enumerate(found):
        other = first.setdefault(digest, index)
        if digest and train.targets is not None and train.targets[other] != train.targets[index]:
            twice.append((other, index))
    said = []
    if twice:
        one, two = (train.describe(index) for index in twice[0])
        said.append(
            f"in two classes: {format_count(len(twice), 'image')}, e.g. {one} and {two}; take one of each out"
        )
    for name, images in others.items():
        shared = 0 if images is None else sum(bool(digest) and digest in first for digest in digests(images))
        if shared and images is not None:
            said.append(
                f"trained on too: {shared:,} of {format_count(len(images), f'{name} image')}; take them "
                "out of one"
            )
    return said
