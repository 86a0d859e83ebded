"""The operators that pair similar tokens (bipartite soft matching, arXiv 2210.09461, section 3).

Patches are dealt in turn into two sets, A and B. Each token of A is compared with every token of B, and the
`merged` most similar ones of A join their partners in B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, GraphError, add_constant, graph_of, insert
from calibration.observe import observing_session
from calibration.token_merging.schedule import tokens_left
from calibration.token_merging.sites import MergeSite, TokenStream, find_stream

# --- The operators that pair similar tokens (bipartite soft matching, arXiv 2210.09461, section 3) ---


TO_THE_END = 2**31 - 1
SMALLEST_NORM = 1e-12  # of a key; a zero key is similar to nothing
INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


@dataclass(frozen=True)
class Counts:
    """The sizes of one merge."""

    tokens: int  # before it
    kept: int  # the first ones, which never merge
    merged: int

    @property
    def of_a(self) -> int:
        return (self.tokens - self.kept + 1) // 2

    @property
    def of_b(self) -> int:
        return (self.tokens - self.kept) // 2

    @property
    def left_of_a(self) -> int:
        return self.of_a - self.merged

    @property
    def after(self) -> int:
        return self.tokens - self.merged


class Writer:
    """Inserts one merge's nodes before `anchor`, each under the block's name."""

    def __init__(self, anchor: ir.Node, block: str) -> None:
        self.anchor, self.block, self.graph = anchor, block, graph_of(anchor)

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        shape: Sequence[int | str | None] | None = None,
        dtype: ir.DataType = FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        full = f"{self.block}.merging.{name}"
        return insert(self.anchor, op_type, inputs, name=full, shape=shape, dtype=dtype, **attributes)

    def integers(self, *numbers: int) -> ir.Value:
        """Return an int64 vector, one initializer for each distinct content."""
        return self._constant("integers." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def number(self, value: int) -> ir.Value:
        """Return an int64 scalar."""
        return self._constant(f"integer.{value}", np.array(value, np.int64))

    def real(self, name: str, value: float) -> ir.Value:
        return self._constant(f"merging.{name}", np.array(value, np.float32))

    def logarithms(self, most: int) -> ir.Value:
        """Return `float32 [most + 1]`: the natural logarithm of each index, 0 for index 0."""
        counts = np.maximum(np.arange(most + 1), 1)
        return self._constant(f"merging.logarithms.{most}", np.log(counts).astype(np.float32))

    def column(self, start: int, count: int) -> ir.Value:
        """Return `int64 [count, 1]`: start, start + 2, start + 4 and so on."""
        name = f"integers.column.{start}.{count}"
        return self._constant(name, (start + 2 * np.arange(count, dtype=np.int64))[:, None])

    def cut(
        self,
        value: ir.Value,
        start: int,
        end: int,
        name: str,
        *,
        axis: int,
        step: int = 1,
        dtype: ir.DataType,
    ) -> ir.Value:
        bounds = [self.integers(number) for number in (start, end, axis, step)]
        return self.add("Slice", [value, *bounds], name, dtype=dtype)

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        return self.graph.initializers.get(name) or add_constant(self.graph, name, array)


@dataclass(frozen=True)
class Match:
    """Indices within the sets, `int64 [batch, …]`; destinations are those of the sources, in their order."""

    source: ir.Value  # [batch, merged], of A, most similar first
    destination: ir.Value  # [batch, merged], of B
    left: ir.Value | None  # [batch, left of A], ascending; None when all of A merges


def match(write: Writer, site: MergeSite, counts: Counts) -> Match:
    """Pair the tokens of each image by the cosine of their keys, averaged over the heads.

    Ties: ArgMax and TopK both take the lower index first, so equal similarities give one result everywhere.
    What is left of A is sorted into its old order again, so that neighbors fall into different sets at the
    next merge (18.9 instead of 20.7 dB on a ViT-B/16 without it).
    """
    a, b = _unit_keys(write, site, counts)
    similarity = write.add("MatMul", [a, b], "similarity", [None, counts.of_a, counts.of_b])
    last = write.integers(-1)
    best = write.add("ReduceMax", [similarity, last], "best", [None, counts.of_a], keepdims=0)
    closest = write.add("ArgMax", [similarity], "closest", [None, counts.of_a], INT64, axis=-1, keepdims=0)
    order = _sorted(write, best, counts.of_a, "order", largest=True)[1]
    source = write.cut(order, 0, counts.merged, "source", axis=1, dtype=INT64)
    left = None
    if counts.left_of_a:
        rest = write.cut(order, counts.merged, TO_THE_END, "rest", axis=1, dtype=INT64)
        left = _sorted(write, rest, counts.left_of_a, "left", largest=False)[0]
    destination = write.add("GatherElements", [closest, source], "destination", dtype=INT64, axis=1)
    return Match(source, destination, left)


def _unit_keys(write: Writer, site: MergeSite, counts: Counts) -> tuple[ir.Value, ir.Value]:
    """Return the unit keys of A, `[batch, A, d]`, and of B, `[batch, d, B]`."""
    by_head = [counts.tokens, -1, site.heads, site.features]
    heads = write.add("Reshape", [site.key, write.integers(*by_head)], "key.heads")
    key = write.add("ReduceMean", [heads, write.integers(2)], "key.mean", keepdims=0)
    norm = write.add("ReduceL2", [key, write.integers(-1)], "key.norm", keepdims=1)
    norm = write.add("Max", [norm, write.real("smallest_norm", SMALLEST_NORM)], "key.norm.positive")
    unit = write.add("Div", [key, norm], "key.unit")
    a, b = (
        write.cut(unit, counts.kept + place, TO_THE_END, name, axis=0, step=2, dtype=FLOAT)
        for place, name in ((0, "a"), (1, "b"))
    )
    return (
        write.add("Transpose", [a], "a.by_image", perm=[1, 0, 2]),
        write.add("Transpose", [b], "b.by_image", perm=[1, 2, 0]),
    )


def _sorted(
    write: Writer, value: ir.Value, count: int, name: str, *, largest: bool
) -> tuple[ir.Value, ir.Value]:
    """Sort along the last axis and return values and indices.

    `insert` makes nodes with one output, and TopK has two.
    """
    names = [f"{write.block}.merging.{name}.{part}" for part in ("values", "indices")]
    dtype = value.dtype or FLOAT
    outputs = [
        ir.Value(name=names[0], type=ir.TensorType(dtype)),
        ir.Value(name=names[1], type=ir.TensorType(INT64)),
    ]
    attributes = {"axis": -1, "largest": int(largest), "sorted": 1}
    node = ir.node(
        "TopK",
        [value, write.integers(count)],
        attributes,
        outputs=outputs,
        name=f"{write.block}.merging.{name}",
    )
    write.graph.insert_before(write.anchor, node)
    return outputs[0], outputs[1]


# --- Which patches of an image ended in one token, to be shown to a person ---


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
