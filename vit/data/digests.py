"""Digests of images, by which a later step recognizes those that a model was trained on."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import numpy as np

from vit.data.images import Images

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
