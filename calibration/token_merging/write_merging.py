"""Write a plan's token merging into the canonical float graph, in standard operators only.

Tokens are rows of a matrix, `[tokens · batch, width]`, ordered token by token. After a merge they stand in
this order: those that never merge, what is left of A, all of B. A merged token is the mean of its patches,
and its size, the number of its patches, enters the next blocks' attention as log(size) (equation 1 of
arXiv 2210.09461; 23.0 dB, 14.2 without). Sums are made by ScatterElements: ScatterND with duplicate indices
races in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import attribute, constant, graph_of, insert, shape_constant, sizes, tidy
from calibration.plan import PlanError
from calibration.token_merging.match import INT64, MergeWriter, match_tokens
from calibration.token_merging.merge_schedule import MergeCounts, count_merges
from calibration.token_merging.token_stream import HEADS_LAST, MergeBlock, TokenStream, find_token_stream

# Operators that treat each row alike, whatever its place.
ROW_WISE = frozenset({"Gemm", "LayerNormalization", "Gelu", "Tanh", "Erf", "Sigmoid", "Relu", "Identity"})
ELEMENT_WISE = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class _Batch:
    """Values that depend on the number of images alone."""

    count: ir.Value  # int64 [1]
    twice: ir.Value  # int64 [1]
    images: ir.Value  # int64 [batch]: 0, 1, 2, …


def write_merging(model: ir.Model, merging: Mapping[str, int]) -> ir.Model:
    """Return a copy of a canonical float graph that merges so many tokens by block; the same for no block.

    Raises:
        PlanError: where the plan does not fit the graph.
    """
    if not merging:
        return model
    model = model.clone()
    stream = find_token_stream(model)
    batch: _Batch | None = None
    size: ir.Value | None = None
    biased: dict[ir.Node, tuple[str, ir.Value, int]] = {}
    merges = count_merges(merging, stream.merge_blocks, tokens=stream.tokens, patches=stream.patches)
    for block, counts in merges.items():
        merge_block = stream.merge_blocks[block]
        uses = [(use.node, use.idx) for use in merge_block.tokens.uses()]
        readers = {node for node, _ in uses}
        write = MergeWriter(next(node for node in model.graph if node in readers), block)
        batch = batch or _write_batch(model, write)
        merged, size = _MergeRows(write, merge_block, counts, batch, size).write()
        for node, index in uses:
            node.replace_input_with(index, merged)
        # A later merge replaces the size for the attention behind it.
        biased |= {node: (block, size, counts.after) for node in _adapt_readers(merged, uses, counts)}
    _add_log_sizes(model, biased, stream)
    tidy(model)
    return model


def _write_batch(model: ir.Model, write: MergeWriter) -> _Batch:
    """Return the number of images, which the graph has computed already where it expands the class token."""
    pixels = model.graph.inputs[0]
    shapes = [use.node for use in pixels.uses() if use.node.op_type == "Shape"]
    done = [each for each in shapes if (attribute(each, "start", 0), attribute(each, "end", 0)) == (0, 1)]
    count = done[0].outputs[0] if done else write.add("Shape", [pixels], "batch", [1], INT64, start=0, end=1)
    scalar = write.add("Squeeze", [count, write.integers(0)], "batch.scalar", [], INT64)
    images = write.add("Range", [write.number(0), scalar, write.number(1)], "images")
    return _Batch(count, write.add("Mul", [count, write.integers(2)], "batch.twice", [1], INT64), images)


class _MergeRows:
    """Writes one merge: the tokens and their sizes, from those before to those after."""

    def __init__(
        self, write: MergeWriter, block: MergeBlock, counts: MergeCounts, batch: _Batch, size: ir.Value | None
    ) -> None:
        self.writer, self.block, self.counts, self.batch = write, block, counts, batch
        self.size = size if size is not None else self._write_ones()

    def write(self) -> tuple[ir.Value, ir.Value]:
        """Return merged tokens, `float32 [after · batch, width]`, and their sizes, `[after · batch, 1]`."""
        write, found = self.writer, match_tokens(self.writer, self.block, self.counts)
        batch, first = self.batch, self.counts.kept
        left = [] if found.left is None else [self._number_rows(found.left, batch.twice, first, "left")]
        stay = [self._number_unmergeable(), *left, self._number_all_of_b()]
        kept = write.add("Concat", stay, "kept.rows", axis=0)  # in their new order: int64 [after · batch]
        source = self._number_rows(found.source, batch.twice, first, "source")
        # The sources are added to these rows of the new order, int64 [merged · batch, 1].
        rows = self._number_rows(found.destination, batch.count, first + self.counts.left_of_a, "destination")
        destination = write.add("Unsqueeze", [rows, write.integers(1)], "destination.column", [None, 1])
        kept_size = write.add("Gather", [self.size, kept], "kept.size", [None, 1], axis=0)
        source_size = write.add("Gather", [self.size, source], "source.size", [None, 1], axis=0)
        size = self._write_sum(kept_size, destination, source_size, "size")
        share = write.add("Div", [kept_size, size], "kept.share", [None, 1])
        reached = write.add("GatherElements", [size, destination], "destination.size", [None, 1], axis=0)
        source_share = write.add("Div", [source_size, reached], "source.share", [None, 1])
        width = (sizes(self.block.tokens) or [None])[-1]
        parts = []
        for name, rows, weight in (("kept", kept, share), ("source", source, source_share)):
            tokens = write.add("Gather", [self.block.tokens, rows], f"{name}.tokens", [None, width], axis=0)
            parts.append(write.add("Mul", [tokens, weight], f"{name}.part", [None, width]))
        shape = write.integers(1, width or 0)
        spread = write.add("Expand", [destination, shape], "destination.spread", [None, width])
        return self._write_sum(parts[0], spread, parts[1], "tokens"), size

    def _write_sum(self, data: ir.Value, indices: ir.Value, updates: ir.Value, name: str) -> ir.Value:
        inputs = [data, indices, updates]
        return self.writer.add("ScatterElements", inputs, name, sizes(data), axis=0, reduction="add")

    def _write_ones(self) -> ir.Value:
        """Return the sizes before the first merge: every token is one patch."""
        write = self.writer
        rows = write.add("Mul", [self.batch.count, write.integers(self.counts.tokens)], "rows", [1], INT64)
        shape = write.add("Concat", [rows, write.integers(1)], "ones.shape", [2], axis=0)
        one = ir.Tensor(np.ones(1, np.float32))
        return write.add("ConstantOfShape", [shape], "ones", [None, 1], ir.DataType.FLOAT, value=one)

    def _number_unmergeable(self) -> ir.Value:
        """Return the rows of the tokens that never merge: 0, 1, …, kept · batch - 1."""
        write = self.writer
        factors = [self.batch.count, write.integers(self.counts.kept)]
        count = write.add("Mul", factors, "fixed.count", [1], INT64)
        end = write.add("Squeeze", [count, write.integers(0)], "fixed.end", [])
        return write.add("Range", [write.number(0), end, write.number(1)], "fixed.rows")

    def _number_all_of_b(self) -> ir.Value:
        """Return the rows of every second patch, from the second one on."""
        write, batch = self.writer, self.batch
        start, count = self.counts.kept + 1, self.counts.of_b
        column = (start + 2 * np.arange(count, dtype=np.int64))[:, None]
        tokens = write.constant(f"integers.column.{start}.{count}", column)
        first = write.add("Mul", [tokens, batch.count], "b.first")
        rows = write.add("Add", [first, batch.images], "b.image")
        return write.add("Reshape", [rows, write.integers(-1)], "b.rows")

    def _number_rows(self, index: ir.Value, stride: ir.Value, first: int, name: str) -> ir.Value:
        """Return the rows `(first + stride · index) · batch + image` of `index [batch, n]`, token by token.

        `stride` is in rows: the batch where every token counts, twice the batch where every second one does.
        """
        write = self.writer
        by_token = write.add("Transpose", [index], f"{name}.by_token", perm=[1, 0])
        steps = write.add("Mul", [by_token, stride], f"{name}.steps")
        start = write.add("Mul", [self.batch.count, write.integers(first)], f"{name}.start", [1], INT64)
        offset = write.add("Add", [self.batch.images, start], f"{name}.offset")
        rows = write.add("Add", [steps, offset], f"{name}.rows.by_token")
        return write.add("Reshape", [rows, write.integers(-1)], f"{name}.rows")


def _add_log_sizes(
    model: ir.Model, biased: Mapping[ir.Node, tuple[str, ir.Value, int]], stream: TokenStream
) -> None:
    """Add log(size) of each key to the scores before every Softmax behind a merge (equation 1)."""
    heads = next(iter(stream.merge_blocks.values())).heads
    written: dict[ir.Value, ir.Value] = {}
    for softmax in [node for node in model.graph if node in biased]:
        block, size, tokens = biased[softmax]
        if size not in written:
            written[size] = _write_log_size(MergeWriter(softmax, block), size, tokens, heads, stream.patches)
        scores = softmax.inputs[0]
        name = f"{softmax.name}.weighed"
        softmax.replace_input_with(0, insert(softmax, "Add", [scores, written[size]], name=name))


def _write_log_size(write: MergeWriter, size: ir.Value, tokens: int, heads: int, patches: int) -> ir.Value:
    """Return log(size) as scores read it, `float32 [batch · heads, 1, tokens]`.

    It is read from a table of all sizes. ONNX Runtime's Log gives another last bit to log(7) and log(37) in
    the last rows, which do not fill a vector, than in the others; logits would depend on the batch.
    """
    whole = write.add("Cast", [size], "size.whole", [None, 1], to=int(INT64))
    logarithms = np.log(np.maximum(np.arange(patches + 1), 1)).astype(np.float32)
    table = write.constant(f"merging.logarithms.{patches}", logarithms)
    log = write.add("Gather", [table, whole], "log_size", [None, 1], axis=0)
    by_token = write.add("Reshape", [log, write.integers(tokens, -1)], "log_size.by_token", [tokens, None])
    by_image = write.add("Transpose", [by_token], "log_size.by_image", [None, tokens], perm=[1, 0])
    lifted = write.add("Unsqueeze", [by_image, write.integers(1, 2)], "log_size.lifted", [None, 1, 1, tokens])
    repeats, shape = write.integers(1, heads, 1, 1), write.integers(-1, 1, tokens)
    spread = write.add("Expand", [lifted, repeats], "log_size.spread", [None, heads, 1, tokens])
    return write.add("Reshape", [spread, shape], "log_size.by_head", [None, 1, tokens])


# --- Readers of merged tokens: adapt shapes with the number of tokens, refuse what needs all patches ---


def _adapt_readers(merged: ir.Value, uses: list[tuple[ir.Node, int]], counts: MergeCounts) -> list[ir.Node]:
    """Give everything downstream of `merged` the new number of tokens, up to where the class token is read.

    Return every Softmax over the merged tokens. An operator that needs every patch in its place, such as a
    mean over patches, is refused.
    """
    softmaxes, values = list[ir.Node](), {merged}
    waiting, done = [(node, index, False) for node, index in uses], set()
    partners: list[tuple[ir.Node, ir.Value]] = []
    while waiting:
        step = node, index, across = waiting.pop()
        if step in done:
            continue
        done.add(step)
        if _ends(node, index, across, counts.kept):
            continue
        across = _adapt_reader(node, index, across, counts)
        if node.op_type in ELEMENT_WISE:
            partners += _find_partner(node, index)
        if node.op_type == "Softmax" and across:
            softmaxes.append(node)
        output = node.outputs[0]
        if output.is_graph_output():
            raise _refuse(node)
        values.add(output)
        if counts.tokens in (sizes(output) or ()):
            output.shape = None  # inferred again once all merges are written
        waiting += [(use.node, use.idx, across) for use in output.uses()]
    for node, value in partners:
        if value not in values:
            raise _refuse(node)
    return softmaxes


def _ends(node: ir.Node, index: int, across: bool, kept: int) -> bool:
    """Return whether the merged tokens end at this reader: its output has no axis of tokens."""
    if node.op_type == "Gather" and not across:
        # It picks tokens that never merge, such as the class token.
        chosen = constant(node.inputs[1]) if attribute(node, "axis", 0) == 0 else None
        return chosen is not None and bool(((chosen >= 0) & (chosen < kept)).all())
    # The mix sums over the tokens of its second input.
    return node.op_type == "MatMul" and index == int(not across)


def _adapt_reader(node: ir.Node, index: int, across: bool, counts: MergeCounts) -> bool:
    """Adapt a reader of merged tokens; return whether its output has them in columns, as scores have."""
    if node.op_type == "Reshape" and not across:
        _resize(node, counts)
        return False
    if node.op_type == "Transpose" and not across:
        return tuple(attribute(node, "perm", ())) == HEADS_LAST
    if node.op_type in ("MatMul", "Softmax"):
        return across
    row_wise = node.op_type in ROW_WISE and index == 0
    if across or not (row_wise or node.op_type in ELEMENT_WISE):
        raise _refuse(node)
    return False


def _resize(node: ir.Node, counts: MergeCounts) -> None:
    """Give a Reshape the new number of tokens."""
    target = constant(node.inputs[1])
    if target is None or not len(target):
        raise _refuse(node)
    if len(target) == 2 and target[0] == -1:
        return  # rows of a matrix, however many
    if len(target) != 3 or target[0] != counts.tokens or target[1] != -1:
        raise _refuse(node)
    shape = [counts.after, -1, int(target[2])]
    node.replace_input_with(1, shape_constant(graph_of(node), shape))


def _find_partner(node: ir.Node, index: int) -> list[tuple[ir.Node, ir.Value]]:
    """Return the computed partner of an element-wise operator; a constant must be the same for all tokens."""
    other = node.inputs[1 - index]
    array = constant(other)
    if other is None or array is None:
        return [] if other is None else [(node, other)]
    if array.size not in (1, np.shape(array)[-1] if np.ndim(array) else 1):
        raise _refuse(node)
    return []


def _refuse(node: ir.Node) -> PlanError:
    return PlanError(
        f"merging: {node.name} ({node.op_type}) needs every patch in its place, as a mean over the "
        "patches or a bias per position does; leave merging out for this model"
    )
