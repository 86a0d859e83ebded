"""A table of small images with several labels: the colors of their two halves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (0,), "green": (1,), "blue": (2,)}


def write_color_table(
    folder: Path, *, train: int = 160, test: int = 60, colors: Sequence[str] = tuple(COLORS), always: str = ""
) -> Path:
    """Write PNG files 16 x 16 with noise and labels.jsonl into a folder, and return the table.

    Each half is of one color or gray, so that an image has no, one or two labels; `always` is in each.
    """
    random, lines = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            pixels = random.integers(0, 90, (16, 16, 3), np.uint8)
            halves = [random.choice([*colors, "gray"]) for _ in range(2)]
            halves[0] = always or halves[0]
            for half, color in enumerate(halves):
                pixels[:, 8 * half : 8 * half + 8, COLORS.get(color, ())] += 130
            name = f"{split}-{index}.png"
            Image.fromarray(pixels).save(folder / name)
            labels = sorted({color for color in halves if color in colors})
            lines.append(json.dumps({"file": name, "labels": labels, "split": split}))
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return folder / "labels.jsonl"
