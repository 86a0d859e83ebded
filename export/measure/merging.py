"""Effect of token merging: the merged INT8 file beside the same plan without merging, on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.drift import Drift, measure_drift
from calibration.quantize_model import QuantizedModel
from calibration.token_merging.match import MergedPatches
from calibration.token_merging.merge_schedule import count_merges
from calibration.token_merging.token_stream import find_token_stream
from export.measure.inference import batches
from export.sources.source import Source
from vit.data.datasets import Images

SHOWN = 6  # images whose merged patches are shown


@dataclass(frozen=True)
class MergedImage:
    """The patches of one image and the tokens in which they ended."""

    row: int  # of the evaluation images
    pixels: Array = field(repr=False)  # uint8 [H, W, 3], as the model sees them
    groups: Array = field(repr=False)  # int64 [patches down, patches across]
    changed: bool  # whether merging changed its label


@dataclass(frozen=True, kw_only=True)
class Merging:
    """A merged INT8 model beside the dense one of the same plan."""

    schedule: Mapping[str, int]  # tokens that each block merges
    left: Mapping[str, int]  # tokens after each of these blocks
    tokens: int  # of an image without merging
    dense_drift: Drift  # of dense INT8, against float32
    dense_latency: Mapping[str, float]  # ms of one image on one thread: min, median
    dense_logits: Array = field(repr=False)  # float32 [images, classes]
    drift: Drift  # of merged INT8, against float32
    latency: Mapping[str, float]
    changed: tuple[int, ...]  # evaluation images whose label differs between dense and merged INT8
    images: tuple[MergedImage, ...] = field(repr=False)

    @property
    def speed(self) -> float:
        """Speed-up over dense INT8: ratio of the median latencies."""
        return self.dense_latency["median"] / max(self.latency["median"], 1e-9)

    def to_dict(self, images: Images) -> dict[str, Any]:
        """Return what report.json holds of it."""
        return {
            "schedule": dict(self.schedule),
            "tokens": self.tokens,
            "tokens_left": dict(self.left),
            "dense_int8": {"drift": self.dense_drift.to_dict(), "latency_ms": dict(self.dense_latency)},
            "merged_int8": {"drift": self.drift.to_dict(), "latency_ms": dict(self.latency)},
            "speed_over_dense_int8": self.speed,
            "changed_by_merging": [images.public_name(row) for row in self.changed],
        }


def compare(
    source: Source,
    evaluation: Images,
    merged: QuantizedModel,
    logits: tuple[Array, Array, Array],
    times: tuple[Mapping[str, float], Mapping[str, float]],
) -> Merging:
    """Compare a merged model with the dense one of the same plan.

    Args:
        source: the float model.
        evaluation: the images that were measured.
        merged: the merged INT8 model and its plan.
        logits: of float32, dense INT8 and merged INT8, each `float32 [images, classes]`.
        times: milliseconds of one image, of dense and of merged INT8.
    """
    exact, before, after = logits
    model, schedule = source.exported.model, merged.plan.merging
    stream = find_token_stream(model)
    merges = count_merges(schedule, stream.merge_blocks, tokens=stream.tokens, patches=stream.patches)
    changed = tuple(np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1)).tolist())
    return Merging(
        schedule=schedule,
        left={block: counts.after for block, counts in merges.items()},
        tokens=stream.tokens,
        dense_drift=measure_drift(exact, before, *evaluation.truth),
        dense_latency=times[0],
        dense_logits=before,
        drift=measure_drift(exact, after, *evaluation.truth),
        latency=times[1],
        changed=changed,
        images=_shown(source, evaluation, merged, changed),
    )


def _shown(
    source: Source, evaluation: Images, merged: QuantizedModel, changed: tuple[int, ...]
) -> tuple[MergedImage, ...]:
    """Return the merged patches of the images that changed their label, then of others, `SHOWN` in all."""
    target = merged.plan.target
    patches = MergedPatches(source.exported.model, merged.model, merged.plan.merging, target=target)
    rows = list(dict.fromkeys([*changed, *range(len(evaluation))]))[:SHOWN]
    found = []
    for row, pixels in zip(rows, batches(evaluation.subset(rows), source.preprocess, size=1), strict=True):
        groups = patches(pixels)
        height, width = pixels.shape[1:3]
        edge = math.isqrt(height * width // len(groups))
        grid = groups.reshape(height // edge, width // edge)
        found.append(MergedImage(row, pixels[0], grid, row in changed))
    return tuple(found)
