"""Which patches of an image ended in one token, to be shown to a person."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.graph import Array, GraphError
from calibration.merging.match import Counts
from calibration.merging.schedule import tokens_left
from calibration.merging.sites import TokenStream, find_stream
from calibration.observe import observing_session


class MergedPatches:
    """Follows the patches of one image through the merges of a graph.

    Args:
        model: the canonical float graph.
        written: the same graph as it runs, float or int8, with `merging` written into it.
        merging: tokens to merge, by block; not empty.
    """

    def __init__(
        self, model: ir.Model, written: ir.Model, merging: Mapping[str, int], **session: str
    ) -> None:
        self.stream: TokenStream = find_stream(model)
        left = tokens_left(
            merging, tuple(self.stream.sites), tokens=self.stream.tokens, patches=self.stream.patches
        )
        self.steps: list[tuple[str, Counts]] = []
        tokens = self.stream.tokens
        for block, after in left.items():
            self.steps.append((block, Counts(tokens, self.stream.kept, tokens - after)))
            tokens = after
        self.names = [f"{block}.merging.{part}" for block, counts in self.steps for part in _parts(counts)]
        self.session = observing_session(written, self.names, threads=1, **session)  # type: ignore[arg-type]

    def __call__(self, pixels: Array) -> Array:
        """Return the token in which each patch of one image ended, `int64 [patches]`: 0, 1, 2, … in order.

        Args:
            pixels: `uint8 [1, H, W, 3]`.
        """
        if len(pixels) != 1:
            raise GraphError(f"expected one image, found {len(pixels)}")
        found = dict(
            zip(
                self.names,
                self.session.run(self.names, {self.session.get_inputs()[0].name: pixels}),
                strict=True,
            )
        )
        place = np.arange(self.stream.tokens)  # where each token of the start stands by now
        for block, counts in self.steps:
            parts = {part: found[f"{block}.merging.{part}"][0] for part in _parts(counts)}
            place = _moved(counts, parts)[place]
        _, groups = np.unique(place[self.stream.kept :], return_inverse=True)
        return np.asarray(groups, np.int64)


def _parts(counts: Counts) -> tuple[str, ...]:
    return ("source", "destination", "left.values") if counts.left_of_a else ("source", "destination")


def _moved(counts: Counts, parts: Mapping[str, Array]) -> Array:
    """Return where each token stands after a merge, `int64 [tokens]`."""
    moved = np.arange(counts.tokens)
    first_of_b = counts.kept + counts.left_of_a
    moved[counts.kept + 1 :: 2] = first_of_b + np.arange(counts.of_b)
    if counts.left_of_a:
        moved[counts.kept + 2 * parts["left.values"]] = counts.kept + np.arange(counts.left_of_a)
    moved[counts.kept + 2 * parts["source"]] = first_of_b + parts["destination"]
    return np.asarray(moved)
