"""Images with several labels: two photos of a folder of classes side by side, with a table of their classes.

    python tests/support/photo_pairs.py PHOTOS OUT [PAIRS [EDGE]]

PHOTOS is PHOTOS/train/<class>/… and PHOTOS/test/<class>/…; there are PAIRS images of each split.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def make_pairs(photos: Path, out: Path, pairs: int = 400, edge: int = 224, seed: int = 0) -> Path:
    """Write PNG files [edge, edge] and labels.csv into `out`, and return the table.

    Each half is gray with a chance of one in five: such an image has one label, or none.
    """
    random, rows = np.random.default_rng(seed), []
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        files = sorted(each for each in (photos / split).glob("*/*") if each.is_file())
        for index in range(pairs):
            chosen = [files[int(random.integers(len(files)))] for _ in range(2)]
            shown = [each if random.random() > 0.2 else None for each in chosen]
            name = f"{split}-{index:04}.png"
            image = Image.new("RGB", (edge, edge), (127, 127, 127))
            for half, file in enumerate(shown):
                if file is not None:
                    with Image.open(file) as photo:
                        fitted = ImageOps.fit(photo.convert("RGB"), (edge // 2, edge))
                        image.paste(fitted, (half * (edge // 2), 0))
            image.save(out / name)
            labels = sorted({file.parent.name for file in shown if file is not None})
            rows.append((name, ";".join(labels), split))
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("file", "labels", "split"), *rows])
    return out / "labels.csv"


if __name__ == "__main__":
    folders, sizes = map(Path, sys.argv[1:3]), map(int, sys.argv[3:])
    print(make_pairs(*folders, *sizes))
