"""Token merging in the report: dense and merged INT8 side by side, and images with their merged patches."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from export.measure.merging import MergedImage, Merging
from export.measure.results import Results
from export.report.figures import pace_in_words
from runtime.text import format_count
from vit.page.image_uri import enlarge, png_uri

TINT = 0.55  # share of a group's color over its pixels
GOLDEN = 0.61803398875  # steps of this share around the color circle never come close to each other early


def merging_section(results: Results) -> dict[str, Any] | None:
    """Return what the template shows of merging; None for a dense model."""
    merging = results.merging
    if merging is None:
        return None
    last = list(merging.left.values())[-1]
    return {
        "lead": (
            f"Merging is an approximation: {_schedule(merging.schedule)}. "
            f"{merging.tokens} tokens go in, {last} are left at the end. Merged INT8 takes "
            f"{merging.latency['median']:.2f} ms for one image on one thread, dense INT8 "
            f"{merging.dense_latency['median']:.2f} ms: it is {pace_in_words(merging.speed)}."
        ),
        "rows": _rows(merging),
        "changed": [results.images.public_name(row) for row in merging.changed],
        "images": [
            {
                "name": results.images.public_name(each.row),
                "note": "its label changed"
                if each.changed
                else format_count(len(np.unique(each.groups)), "token"),
                "image": png_uri(painted(each), colors=128),
            }
            for each in merging.images
        ],
    }


def merging_line(results: Results) -> str:
    """Return the line of the terminal."""
    merging = results.merging
    assert merging is not None  # the caller has one
    dense, drift = merging.dense_drift, merging.drift
    last = list(merging.left.values())[-1]
    top1 = "" if drift.top1 is None else f", top-1 {dense.top1:.2f} → {drift.top1:.2f} %"
    changed = f"{len(merging.changed)} of {format_count(drift.images, 'label')} changed"
    pace = f"{merging.speed:.2f} times as fast" if merging.speed >= 1 else f"slower ({merging.speed:.2f}x)"
    return (
        f"token merging, an approximation: {_schedule(merging.schedule)}, {merging.tokens} → {last} tokens; "
        f"against dense int8: SQNR {dense.sqnr:.1f} → {drift.sqnr:.1f} dB, agreement {dense.agreement:.2f} → "
        f"{drift.agreement:.2f} %{top1}, {merging.dense_latency['median']:.2f} → "
        f"{merging.latency['median']:.2f} ms, {pace}; {changed}"
    )


def painted(image: MergedImage) -> Array:
    """Return the image with one color for the patches of each merged token, `uint8 [H, W, 3]`.

    Patches that merged with no other stay as they are.
    """
    down, across = image.groups.shape
    pixels = enlarge(image.pixels).astype(np.float32)
    height, width = pixels.shape[0] // down, pixels.shape[1] // across
    counts = np.bincount(image.groups.ravel())
    tinted = counts[image.groups] > 1
    colors = np.array([colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.85, 1) for index in range(len(counts))])
    for row, column in np.argwhere(tinted):
        cell = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
        cell *= 1 - TINT
        cell += TINT * 255 * colors[image.groups[row, column]].astype(np.float32)
    _borders(pixels, image.groups, height, width)
    return np.asarray(np.rint(pixels), np.uint8)


def _borders(pixels: Array, groups: Array, height: int, width: int) -> None:
    """Draw a line between neighbors that ended in different tokens."""
    for row, column in np.argwhere(groups[1:] != groups[:-1]):
        pixels[(row + 1) * height, column * width : (column + 1) * width] = 255
    for row, column in np.argwhere(groups[:, 1:] != groups[:, :-1]):
        pixels[row * height : (row + 1) * height, (column + 1) * width] = 255


def _schedule(schedule: Mapping[str, int]) -> str:
    """Return the schedule as words, equal numbers together."""
    blocks: dict[int, list[str]] = {}
    for block, merged in schedule.items():
        blocks.setdefault(merged, []).append(block)
    return ", ".join(
        f"{merged} in {'each of ' if len(names) > 1 else ''}{', '.join(names)}"
        for merged, names in blocks.items()
    )


def _rows(merging: Merging) -> list[tuple[str, str, str]]:
    """Return (what, dense INT8, merged INT8)."""
    dense, drift = merging.dense_drift, merging.drift
    rows = []
    if dense.top1 is not None and drift.top1 is not None:
        rows.append(("Top-1", f"{dense.top1:.2f} %", f"{drift.top1:.2f} %"))
    times = (merging.dense_latency, merging.latency)
    median, least = (tuple(f"{each[key]:.2f} ms" for each in times) for key in ("median", "min"))
    return [
        *rows,
        ("Same label as float32", f"{dense.agreement:.2f} %", f"{drift.agreement:.2f} %"),
        ("Logits, signal to noise", f"{dense.sqnr:.1f} dB", f"{drift.sqnr:.1f} dB"),
        ("One image, one thread, median", median[0], median[1]),
        ("The same, minimum", least[0], least[1]),
    ]
