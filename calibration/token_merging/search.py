"""The most merging within a budget, found by bisection on the search images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from calibration.measure.drift import Drift
from calibration.token_merging.schedule import even_schedule, middle_blocks, most_merged, tokens_left
from calibration.token_merging.sites import TokenStream, find_stream


@dataclass(frozen=True, kw_only=True)
class MergeTrial:
    """One number of merged tokens per block, and what it does to the search images."""

    merged: int
    drift: Drift
    misses: tuple[str, ...]  # which limits it breaks, a phrase each; empty where it keeps them


@dataclass(frozen=True, kw_only=True)
class MergeSearch:
    """The schedule that was found, and the way to it."""

    merging: Mapping[str, int] = field(default_factory=dict)  # empty where one token per block is too much
    dense: Drift  # of the same plan without merging
    most: int  # tokens per block that fit the graph
    trials: tuple[MergeTrial, ...]  # in the order in which they were made

    @property
    def merged(self) -> int:
        """Return the number of tokens that each block of the schedule merges."""
        return next(iter(self.merging.values()), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds of the search."""
        return {
            "merged_per_block": self.merged,
            "most": self.most,
            "dense": self.dense.to_dict(),
            "trials": [
                {"merged": each.merged, "drift": each.drift.to_dict(), "misses": list(each.misses)}
                for each in self.trials
            ],
        }


def middle_merging(model: ir.Model, merged: int) -> dict[str, int]:
    """Return `merged` tokens per block for the middle half of a graph's blocks.

    Raises:
        PlanError: where the graph cannot merge, or not so many.
    """
    stream = find_stream(model)
    schedule = even_schedule(_middle(stream), merged)
    tokens_left(schedule, tuple(stream.sites), tokens=stream.tokens, patches=stream.patches)
    return schedule


def search_merging(
    model: ir.Model,
    drift_of: Callable[[Mapping[str, int]], Drift],
    misses: Callable[[Drift], list[str]],
    dense: Drift,
) -> MergeSearch:
    """Find the most tokens that each block of the middle half can merge within a budget.

    Bisection: drift is taken to grow with the number of merged tokens. Where a few images say otherwise the
    result is still within the budget on these images, if perhaps not the largest number that is.

    Args:
        model: the canonical float graph.
        drift_of: measures a schedule on the search images.
        misses: says which limits a drift breaks.
        dense: the drift of the same plan without merging; where it breaks a limit, nothing is tried.

    Raises:
        PlanError: where the graph cannot merge.
    """
    stream = find_stream(model)
    blocks = _middle(stream)
    most = most_merged(stream.patches, len(blocks))
    trials: list[MergeTrial] = []
    enough, too_many = 0, 1 if misses(dense) else most + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        drift = drift_of(even_schedule(blocks, middle))
        broken = misses(drift)
        trials.append(MergeTrial(merged=middle, drift=drift, misses=tuple(broken)))
        if broken:
            too_many = middle
        else:
            enough = middle
    return MergeSearch(merging=even_schedule(blocks, enough), dense=dense, most=most, trials=tuple(trials))


def _middle(stream: TokenStream) -> list[str]:
    return [name for name in middle_blocks(stream.blocks) if name in stream.sites]
