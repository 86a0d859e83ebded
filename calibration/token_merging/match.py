"""Pairs of similar tokens: the operators that find them in a graph, and the pairs of one image.

Bipartite soft matching (arXiv 2210.09461, section 3): patches are dealt in turn into two sets, A and B. Each
token of A is compared with every token of B, and the `merged` most similar ones of A join their partners in
B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, GraphError, add_constant, graph_of, insert
from calibration.observe import open_observing_session
from calibration.token_merging.merge_schedule import MergeCounts, count_merges
from calibration.token_merging.token_stream import MergeBlock, find_token_stream

TO_THE_END = 2**31 - 1
SMALLEST_NORM = 1e-12  # of a key; a zero key is similar to nothing
INT64 = ir.DataType.INT64


class MergeWriter:
    """Inserts the nodes of one merge before `anchor`, each under the block's name.

    Constants are shared by all merges of a graph.
    """

    def __init__(self, anchor: ir.Node, block: str) -> None:
        self.anchor, self.block, self.graph = anchor, block, graph_of(anchor)

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: Sequence[int | str | None] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node and return its output; arguments are those of `insert`."""
        full = f"{self.block}.merging.{name}"
        return insert(self.anchor, op_type, inputs, name=full, shape=shape, dtype=dtype, **attributes)

    def integers(self, *numbers: int) -> ir.Value:
        """Return an int64 vector, one initializer for each distinct content."""
        return self.constant("integers." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def number(self, value: int) -> ir.Value:
        """Return an int64 scalar."""
        return self.constant(f"integer.{value}", np.array(value, np.int64))

    def slice(self, value: ir.Value, start: int, end: int, name: str, *, axis: int, step: int) -> ir.Value:
        """Return the slice `start:end:step` along an axis."""
        bounds = [self.integers(number) for number in (start, end, axis, step)]
        return self.add("Slice", [value, *bounds], name)

    def constant(self, name: str, array: Array) -> ir.Value:
        """Return an initializer, one for each distinct content: the name says it."""
        return self.graph.initializers.get(name) or add_constant(self.graph, name, array)


@dataclass(frozen=True)
class TokenMatch:
    """Indices within the sets, `int64 [batch, …]`; destinations are those of the sources, in their order."""

    source: ir.Value  # [batch, merged], of A, most similar first
    destination: ir.Value  # [batch, merged], of B
    left: ir.Value | None  # [batch, left of A], ascending; None when all of A merges


def match_tokens(write: MergeWriter, block: MergeBlock, counts: MergeCounts) -> TokenMatch:
    """Insert operators that pair the tokens of each image by the cosine of their keys, averaged over heads.

    Ties: ArgMax and TopK both take the lower index first, so equal similarities give one result everywhere.
    What is left of A is sorted into its old order again, so that neighbors fall into different sets at the
    next merge (20.7 dB on a ViT-B/16; 18.9 dB without).
    """
    a, b = _normalize_keys(write, block, counts)
    similarity = write.add("MatMul", [a, b], "similarity", [None, counts.of_a, counts.of_b])
    last = write.integers(-1)
    best = write.add("ReduceMax", [similarity, last], "best", [None, counts.of_a], keepdims=0)
    closest = write.add("ArgMax", [similarity], "closest", [None, counts.of_a], INT64, axis=-1, keepdims=0)
    order = _sort(write, best, counts.of_a, "order", largest=True)[1]
    source = write.slice(order, 0, counts.merged, "source", axis=1, step=1)
    left = None
    if counts.left_of_a:
        rest = write.slice(order, counts.merged, TO_THE_END, "rest", axis=1, step=1)
        left = _sort(write, rest, counts.left_of_a, "left", largest=False)[0]
    destination = write.add("GatherElements", [closest, source], "destination", axis=1)
    return TokenMatch(source, destination, left)


def _normalize_keys(write: MergeWriter, block: MergeBlock, counts: MergeCounts) -> tuple[ir.Value, ir.Value]:
    """Return the keys with norm 1: those of A, `[batch, A, d]`, and those of B, `[batch, d, B]`."""
    by_head = [counts.tokens, -1, block.heads, block.features]
    heads = write.add("Reshape", [block.key, write.integers(*by_head)], "key.heads")
    key = write.add("ReduceMean", [heads, write.integers(2)], "key.mean", keepdims=0)
    norm = write.add("ReduceL2", [key, write.integers(-1)], "key.norm", keepdims=1)
    least = write.constant("merging.smallest_norm", np.array(SMALLEST_NORM, np.float32))
    norm = write.add("Max", [norm, least], "key.norm.positive")
    unit = write.add("Div", [key, norm], "key.unit")
    a = write.slice(unit, counts.kept, TO_THE_END, "a", axis=0, step=2)
    b = write.slice(unit, counts.kept + 1, TO_THE_END, "b", axis=0, step=2)
    by_image = write.add("Transpose", [a], "a.by_image", perm=[1, 0, 2])
    return by_image, write.add("Transpose", [b], "b.by_image", perm=[1, 2, 0])


def _sort(
    write: MergeWriter, value: ir.Value, count: int, name: str, *, largest: bool
) -> tuple[ir.Value, ir.Value]:
    """Sort along the last axis and return values and indices.

    `insert` makes nodes with one output, and TopK has two.
    """
    full = f"{write.block}.merging.{name}"
    values = ir.Value(name=f"{full}.values", type=ir.TensorType(value.dtype or ir.DataType.FLOAT))
    indices = ir.Value(name=f"{full}.indices", type=ir.TensorType(INT64))
    inputs, attributes = [value, write.integers(count)], {"axis": -1, "largest": int(largest), "sorted": 1}
    node = ir.node("TopK", inputs, attributes, outputs=[values, indices], name=full)
    write.graph.insert_before(write.anchor, node)
    return values, indices


# --- The pairs of one image, to show its merged patches ---


class MergedPatches:
    """The patches of one image that ended in one token, read from the indices of a graph that merges.

    Args:
        model: the canonical float graph.
        written: the same graph as it runs, float or int8, with `merging` written into it.
        merging: tokens to merge, by block; not empty.
        session: `target`, the form of the INT8 weights.
    """

    def __init__(
        self, model: ir.Model, written: ir.Model, merging: Mapping[str, int], **session: str
    ) -> None:
        stream = find_token_stream(model)
        self.tokens, self.kept = stream.tokens, stream.kept
        self.merges = count_merges(merging, stream.merge_blocks, tokens=stream.tokens, patches=stream.patches)
        merges = self.merges.items()
        self.names = [f"{block}.merging.{part}" for block, each in merges for part in _index_names(each)]
        self.session = open_observing_session(written, self.names, threads=1, **session)  # type: ignore[arg-type]

    def __call__(self, pixels: Array) -> Array:
        """Return the token in which each patch of one image ended, `int64 [patches]`: 0, 1, 2, … in order.

        Args:
            pixels: `uint8 [1, H, W, 3]`.
        """
        if len(pixels) != 1:
            raise GraphError(f"expected one image, found {len(pixels)}")
        indices = self.session.run(self.names, {self.session.get_inputs()[0].name: pixels})
        found = dict(zip(self.names, indices, strict=True))
        place = np.arange(self.tokens)  # the present position of each token before the first merge
        for block, counts in self.merges.items():
            parts = {part: found[f"{block}.merging.{part}"][0] for part in _index_names(counts)}
            place = _find_positions(counts, parts)[place]
        _, groups = np.unique(place[self.kept :], return_inverse=True)
        return np.asarray(groups, np.int64)


def _index_names(counts: MergeCounts) -> tuple[str, ...]:
    """Return the last words of the names that `match_tokens` gives to its indices."""
    return ("source", "destination", "left.values") if counts.left_of_a else ("source", "destination")


def _find_positions(counts: MergeCounts, parts: Mapping[str, Array]) -> Array:
    """Return the position of each token after a merge, `int64 [tokens]`.

    The order is that of `write_merging`: tokens that never merge, what is left of A, all of B.
    """
    positions = np.arange(counts.tokens)
    first_of_b = counts.kept + counts.left_of_a
    positions[counts.kept + 1 :: 2] = first_of_b + np.arange(counts.of_b)
    if counts.left_of_a:
        positions[counts.kept + 2 * parts["left.values"]] = counts.kept + np.arange(counts.left_of_a)
    positions[counts.kept + 2 * parts["source"]] = first_of_b + parts["destination"]
    return np.asarray(positions)
