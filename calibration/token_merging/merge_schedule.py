"""Schedules of token merging: how many tokens each block merges, and how many are left after it.

The paper (arXiv 2210.09461, section 3) merges a constant number r of tokens in every block. Here the middle
half of the blocks merges r tokens each, and r is given or the largest one within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from calibration.measure.drift import Drift
from calibration.plan import PlanError
from calibration.token_merging.token_stream import TokenStream, find_token_stream


def list_middle_blocks(blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks that merge unless a plan says otherwise: the middle half of them.

    Before that, merging costs most: 16 tokens merged in one block alone make a noise of 6,602e-6 of the
    logits in block 0 of a ViT-B/16, 423e-6 in block 3, 24e-6 in block 6. After it, little is saved.

    Args:
        blocks: all block names in graph order, the last block included; it is never one of those that merge,
            since only its class token is read.
    """
    depth = len(blocks)
    return tuple(blocks[depth // 4 : max(3 * depth // 4, depth // 4 + 1)][: max(depth - 1, 0)])


def make_even_schedule(blocks: Sequence[str], merged: int) -> dict[str, int]:
    """Return a schedule that merges the same number of tokens in each block.

    Args:
        blocks: names of the blocks that merge.
        merged: tokens per block; 0 gives an empty schedule.
    """
    return dict.fromkeys(blocks, merged) if merged else {}


def schedule_middle_blocks(model: ir.Model, merged: int) -> dict[str, int]:
    """Return a schedule for the middle half of a graph's blocks.

    Args:
        model: the canonical float graph.
        merged: tokens per block.

    Raises:
        PlanError: where the graph cannot merge, or not so many.
    """
    stream = find_token_stream(model)
    schedule = make_even_schedule(_find_middle(stream), merged)
    count_merges(schedule, stream.merge_blocks, tokens=stream.tokens, patches=stream.patches)
    return schedule


def _find_middle(stream: TokenStream) -> list[str]:
    return [name for name in list_middle_blocks(stream.blocks) if name in stream.merge_blocks]


@dataclass(frozen=True)
class MergeCounts:
    """Numbers of tokens of one merge."""

    tokens: int  # before it
    kept: int  # the first ones, which never merge
    merged: int

    @property
    def of_a(self) -> int:
        """Number of patches in set A: every second one, from the first."""
        return (self.tokens - self.kept + 1) // 2

    @property
    def of_b(self) -> int:
        """Number of patches in set B: every second one, from the second."""
        return (self.tokens - self.kept) // 2

    @property
    def left_of_a(self) -> int:
        """Number of patches of A that do not merge."""
        return self.of_a - self.merged

    @property
    def after(self) -> int:
        """Number of tokens after the merge."""
        return self.tokens - self.merged


def max_merged_per_block(patches: int, blocks: int) -> int:
    """Return the largest number of tokens that each of `blocks` blocks can merge, one after another.

    A merge takes at most half of the patches that are left: each merged patch needs a partner that stays.
    """
    return patches // (blocks + 1) if blocks else 0


def count_merges(
    schedule: Mapping[str, int], blocks: Collection[str], *, tokens: int, patches: int
) -> dict[str, MergeCounts]:
    """Return the numbers of tokens of each merge of a schedule, in graph order.

    Args:
        schedule: tokens to merge, by block.
        blocks: the names of the blocks that can merge, in graph order.
        tokens: tokens of an unmerged image, those that never merge (class token, registers) included.
        patches: how many of them are patches.

    Raises:
        PlanError: for a block that cannot merge, and a number that is not 1 to half of the patches left.
    """
    if unknown := [name for name in schedule if name not in blocks]:
        raise PlanError(
            f"merging: expected blocks that can merge ({', '.join(blocks)}), found {unknown[0]!r}; "
            "the last block cannot, only its class token is read"
        )
    merges: dict[str, MergeCounts] = {}
    whole, kept = patches, tokens - patches
    for block in (name for name in blocks if name in schedule):
        most, merged = patches // 2, schedule[block]
        if not 1 <= merged <= most:
            each, same = max_merged_per_block(whole, len(schedule)), len(set(schedule.values())) == 1
            advice = f"; {each} per block fit all {len(schedule)} blocks" if each and same else ""
            raise PlanError(
                f"merging: {block} has {patches} patches left and can merge 1 to {most} of them, "
                f"found {merged}{advice}"
            )
        merges[block] = MergeCounts(kept + patches, kept, merged)
        patches -= merged
    return merges


# --- Search: the most merging within a budget ---


@dataclass(frozen=True, kw_only=True)
class MergeTrial:
    """One number of merged tokens per block, and what it does to the search images."""

    merged: int
    drift: Drift
    misses: tuple[str, ...]  # which limits it breaks, one phrase per limit; empty within all of them


@dataclass(frozen=True, kw_only=True)
class MergeSearch:
    """The schedule that was found, and the trials that led to it."""

    merging: Mapping[str, int] = field(default_factory=dict)  # empty where one token per block is too much
    dense: Drift  # of the same plan without merging
    most: int  # tokens per block that fit the graph
    trials: tuple[MergeTrial, ...]  # in their order

    @property
    def merged(self) -> int:
        """Number of tokens that each block of the schedule merges."""
        return next(iter(self.merging.values()), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds of the search."""
        return {
            "merged_per_block": self.merged,
            "most": self.most,
            "dense": self.dense.to_dict(),
            "trials": [{**asdict(each), "misses": list(each.misses)} for each in self.trials],
        }


def search_merging(
    model: ir.Model,
    measure: Callable[[Mapping[str, int]], Drift],
    misses: Callable[[Drift], list[str]],
    dense: Drift,
) -> MergeSearch:
    """Find the most tokens that each block of the middle half can merge within a budget.

    Bisection: drift is taken to grow with the number of merged tokens. Where a few images say otherwise the
    result is still within the budget on these images, if perhaps not the largest number that is. Where
    `dense`, the drift of the same plan without merging, breaks a limit, nothing is tried.

    Raises:
        PlanError: where the graph cannot merge.
    """
    stream = find_token_stream(model)
    blocks = _find_middle(stream)
    most = max_merged_per_block(stream.patches, len(blocks))
    trials: list[MergeTrial] = []
    enough, too_many = 0, 1 if misses(dense) else most + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        drift = measure(make_even_schedule(blocks, middle))
        trials.append(MergeTrial(merged=middle, drift=drift, misses=tuple(misses(drift))))
        if trials[-1].misses:
            too_many = middle
        else:
            enough = middle
    return MergeSearch(
        merging=make_even_schedule(blocks, enough), dense=dense, most=most, trials=tuple(trials)
    )
