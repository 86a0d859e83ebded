"""Effect of token merging: the merged INT8 file beside the same plan without merging, on the same images."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.drift import Drift, measure_drift
from calibration.measure.label_sets import differ, predict_answers
from calibration.token_merging.match import MergedPatches
from calibration.token_merging.merge_schedule import count_merges
from calibration.token_merging.token_stream import find_token_stream
from export.measure.inference import DENSE, ModelFile, Run
from export.report.number_formats import percent
from export.report.section import Results, Section
from runtime.text import format_count
from vit.page.image_uri import enlarge, png_uri

IMAGES = 6  # images whose merged patches are shown
TINT = 0.55  # share of a group's color over its pixels
GOLDEN = 0.61803398875  # steps of this share around the color circle stay far from each other


@dataclass(frozen=True)
class MergedImage:
    """The patches of one image and the tokens in which they ended."""

    row: int  # of the evaluation images
    pixels: Array = field(repr=False)  # uint8 [H, W, 3], as the model sees them
    groups: Array = field(repr=False)  # int64 [patches down, patches across]
    changed: bool  # whether merging changed its label


@dataclass(frozen=True, kw_only=True)
class MergingEffect(Section):
    """A merged INT8 model beside the dense one of the same plan."""

    schedule: Mapping[str, int]  # tokens that each block merges
    left: Mapping[str, int]  # tokens after each of these blocks
    tokens: int  # of an image without merging
    dense_drift: Drift  # of dense INT8, against float32
    dense_latency: Mapping[str, float]  # ms of one image on one thread: min, median
    drift: Drift  # of merged INT8, against float32
    latency: Mapping[str, float]
    changed: tuple[int, ...]  # evaluation images whose label differs between dense and merged INT8
    images: tuple[MergedImage, ...] = field(repr=False)
    template = "merging_effect.j2"

    @classmethod
    def measure(cls, run: Run) -> MergingEffect | None:
        """Compare the merged variant with the dense one; None where none merges."""
        merged = next((each for each in run.variants if each.merges), None)
        if merged is None or merged.quantized is None:
            return None
        exact, before, after = (run.logits[name] for name in ("float32", DENSE, merged.variant))
        truth, schedule = run.truth, merged.quantized.plan.merging
        stream = find_token_stream(run.source.exported.model)
        merges = count_merges(schedule, stream.merge_blocks, tokens=stream.tokens, patches=stream.patches)
        dense, merging = (predict_answers(each, run.source.thresholds) for each in (before, after))
        changed = tuple(np.flatnonzero(differ(dense, merging)).tolist())
        return cls(
            schedule=schedule,
            left={block: counts.after for block, counts in merges.items()},
            tokens=stream.tokens,
            dense_drift=measure_drift(exact, before, *truth),
            dense_latency=run.latency[DENSE],
            drift=measure_drift(exact, after, *truth),
            latency=run.latency[merged.variant],
            changed=changed,
            images=_find_merged_patches(run, merged, changed),
        )

    @property
    def speed(self) -> float:
        """Speed-up over dense INT8: ratio of the median latencies."""
        return self.dense_latency["median"] / max(self.latency["median"], 1e-9)

    @property
    def tokens_at_end(self) -> int:
        """Tokens behind the last block that merges."""
        return list(self.left.values())[-1]

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the schedule, and the drift without merging, of INT8."""
        if variant != "int8":
            return {}
        return {"merging": {"schedule": dict(self.schedule), "dense_drift": self.dense_drift.to_dict()}}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return both models side by side."""
        document = {
            "schedule": dict(self.schedule),
            "tokens": self.tokens,
            "tokens_left": dict(self.left),
            "dense_int8": {"drift": self.dense_drift.to_dict(), "latency_ms": dict(self.dense_latency)},
            "merged_int8": {"drift": self.drift.to_dict(), "latency_ms": dict(self.latency)},
            "speed_over_dense_int8": self.speed,
            "changed_by_merging": [results.images.public_name(row) for row in self.changed],
        }
        return {"merging": document}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return one line with the figures of both models."""
        dense, drift = self.dense_drift, self.drift
        accuracy = ""
        if drift.accuracy is not None:
            accuracy = f", {drift.figure} {dense.accuracy:.2f} → {percent(drift.accuracy)}"
        speed = f"{self.speed:.2f} times as fast" if self.speed >= 1 else f"slower ({self.speed:.2f}x)"
        return [
            f"token merging, an approximation: {self.schedule_text}, {self.tokens} → {self.tokens_at_end} "
            f"tokens; against dense int8: SQNR {dense.sqnr:.1f} → {drift.sqnr:.1f} dB, agreement "
            f"{dense.agreement:.2f} → {percent(drift.agreement)}{accuracy}, "
            f"{self.dense_latency['median']:.2f} → {self.latency['median']:.2f} ms, {speed}; "
            f"{len(self.changed)} of {format_count(drift.images, 'label')} changed"
        ]

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the names of the images that changed their label, and some images with merged patches."""
        name, images = results.images.public_name, []
        for each in self.images:
            tokens, uri = len(np.unique(each.groups)), png_uri(paint_groups(each), colors=128)
            images.append({"name": name(each.row), "tokens": tokens, "changed": each.changed, "uri": uri})
        return {"changed": [name(row) for row in self.changed], "images": images}

    @property
    def schedule_text(self) -> str:
        """The schedule as words, equal numbers together."""
        blocks: dict[int, list[str]] = {}
        for block, merged in self.schedule.items():
            blocks.setdefault(merged, []).append(block)
        each = {merged: "each of " if len(names) > 1 else "" for merged, names in blocks.items()}
        return ", ".join(f"{merged} in {each[merged]}{', '.join(names)}" for merged, names in blocks.items())


def _find_merged_patches(run: Run, merged: ModelFile, changed: Sequence[int]) -> tuple[MergedImage, ...]:
    assert merged.quantized is not None  # the caller has checked
    evaluation, plan = run.images.evaluation, merged.quantized.plan
    patches = MergedPatches(run.source.exported.model, merged.model, plan.merging, target=plan.target)
    rows = list(dict.fromkeys([*changed, *range(len(evaluation))]))[:IMAGES]
    found = []
    for row, (pixels,) in zip(rows, run.batches(evaluation.subset(rows), size=1), strict=True):
        groups = patches(pixels[None])
        height, width = pixels.shape[:2]
        edge = math.isqrt(height * width // len(groups))
        grid = groups.reshape(height // edge, width // edge)
        found.append(MergedImage(row, pixels, grid, row in changed))
    return tuple(found)


def paint_groups(image: MergedImage) -> Array:
    """Return the image with one color for the patches of each merged token, `uint8 [H, W, 3]`.

    Patches that merged with no other stay as they are.
    """
    pixels = enlarge(image.pixels).astype(np.float32)
    rows, columns = (pixels.shape[axis] // image.groups.shape[axis] for axis in (0, 1))
    groups = image.groups.repeat(rows, axis=0).repeat(columns, axis=1)  # of each pixel
    counts = np.bincount(image.groups.ravel())
    colors = [colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.85, 1) for index in range(len(counts))]
    merged = counts[groups] > 1
    pixels[merged] *= 1 - TINT
    pixels[merged] += TINT * 255 * np.array(colors, np.float32)[groups[merged]]
    # White between neighbors that ended in different tokens.
    pixels[1:][groups[1:] != groups[:-1]] = 255
    pixels[:, 1:][groups[:, 1:] != groups[:, :-1]] = 255
    return np.asarray(np.rint(pixels), np.uint8)
