"""Order the rows token by token, so that attention reads its heads without moving them.

    [N, T, w] → Reshape [N, T, H, d] → Transpose [N, H, T, d]    copies: the heads of an image are separate
    [T, N, w] → Reshape [T, N · H, d] → Transpose [N · H, T, d]  a stride, which the MatMul reads directly

N images of T tokens, H heads of d features, w = H · d. A table says for each operator what becomes of it; an
operator that is not in it, or that handles tokens in another way, keeps the whole graph as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    add_constant,
    attribute,
    constant,
    graph_of,
    input_constant,
    insert,
    permutation,
    producer,
    replace,
    shape_constant,
    sizes,
    tidy,
)
from export.graph.skipped import skip

# --- Kinds of values: tokens by image, or the rows of heads ---


SCALED = ("Add", "Sub", "Mul", "Div")


def _is_by_image(value: ir.Value | None) -> bool:
    """Return whether a value is [N, T, …] with a known T: the order that this rewrite changes."""
    shape = sizes(value)
    if shape is None or len(shape) < 3 or shape[0] is not None or None in shape[1:]:
        return False
    return not _is_of_heads(value)


def _is_of_heads(value: ir.Value | None) -> bool:
    """Return whether a value is [N · H, T, …] made of [T, N · H, …]; torch's own attention has this order."""
    node, shape = producer(value), sizes(value)
    if node is None or shape is None or len(shape) != 3 or shape[0] is not None:
        return False
    if permutation(node) in ((1, 0, 2), (1, 2, 0)):
        rows = producer(node.inputs[0], "Reshape")
        before = sizes(rows.inputs[0]) if rows is not None else None
        features = shape[2] if permutation(node)[1] == 0 else shape[1]
        # Heads are narrower than the rows that they were cut from; [T, N, w] is as wide.
        return before is not None and features != before[-1]
    passes_on = node.op_type in ("MatMul", "Softmax", "Transpose", *SCALED)
    return passes_on and any(_is_of_heads(each) for each in node.inputs)


def _is_concerned(node: ir.Node) -> bool:
    """Return whether the node handles tokens by image, or cuts the pixels into them."""
    if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8:
        # Bytes [N, H, W, 3] look like tokens by image; only the Transpose that cuts patches orders them.
        cast = node.outputs[0].dtype != ir.DataType.UINT8 and _is_by_image(node.outputs[0])
        return node.op_type == "Transpose" or cast
    return any(_is_by_image(value) for value in (*node.inputs, *node.outputs))


def _rank(value: ir.Value | None) -> int:
    return len(sizes(value) or ())


def _splits_heads(value: ir.Value) -> bool:
    """Return whether a value is [N, T, H, d], not [N, H, T, d]: a Reshape made it, or a Reshape reads it."""
    above = producer(value)
    return above is not None and "Reshape" in (above.op_type, *(use.node.op_type for use in value.uses()))


def _bypass(node: ir.Node) -> None:
    """Let the readers of a node read its first input."""
    if (source := node.inputs[0]) is not None:
        replace(node.outputs[0], source)


# --- Rules: how each operator changes ---


Step = Callable[[], None]  # changes one node; runs when every node is known to have one
Rule = Callable[[ir.Node], Step | None]  # what changes the node; None for one that cannot be changed
SWAP = (1, 0, 2)  # [N, T, w] → [T, N, w] or back, around torch's own attention
MIXED = (2, 0, 1, 3)  # [N, H, T, d] → [T, N, H, d], as torch writes it
# The permutation of [N, T, H, d], to the one of [T, N · H, d] with the same result.
HEADS = {(0, 2, 1, 3): (1, 0, 2), (0, 2, 3, 1): (1, 2, 0)}
PIXELS = (0, 1, 3, 2, 4), [1, 3, 0, 2, 4]  # [N, down, patch, across, patch · 3] → rows of patches


def _turn(node: ir.Node, shape: Sequence[int | None] = (), **attributes: int | list[int]) -> None:
    """Give the node other attributes, and its output this shape; () for its own in the new order."""
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)
    output = node.outputs[0]
    if not shape and _is_by_image(output):
        # [N, T, w] → [T, N, w]; [N, T, H, d] → [T, N · H, d]; [N, H, …, …] → [N · H, …, …]
        _, tokens, *rest = sizes(output) or []
        by_token = len(rest) == 1 or _splits_heads(output)
        shape = [tokens, None, rest[-1]] if by_token else [None, *rest]
    if shape:
        output.shape = ir.Shape(shape)


def _reshape(node: ir.Node) -> Step | None:
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or after is None or None in before[1:] or None in after[1:]:
        return None
    inner, outer = [size or 0 for size in before[1:]], [size or 0 for size in after[1:]]
    # Heads of torch's own attention, to be split by image: [N · H, T, d] is the order that is wanted.
    if len(before) == 3 and len(after) == 4 and _is_of_heads(node.inputs[0]) and inner == outer[1:]:
        return lambda: _bypass(node)
    # Rows of a matrix in either order: [N, T, w] or [N, T, H, d] → [N · T, w].
    if len(after) == 2 and outer[0] == inner[-1] * (inner[-2] if len(before) == 4 else 1):
        return lambda: None
    if len(after) == 3 and len(before) in (2, 4):
        target = [outer[0], -1, outer[1]]
    elif len(after) == 4 and len(before) in (2, 3) and _is_read_as_heads(node.outputs[0]):
        target = [outer[0], -1, outer[2]]
    else:
        return None

    def change() -> None:
        node.replace_input_with(1, shape_constant(graph_of(node), target))
        node.attributes.pop("allowzero", None)
        _turn(node)

    return change


def _is_read_as_heads(value: ir.Value) -> bool:
    """Return whether all that reads [N, T, H, d] brings its heads to the front."""
    uses = [use.node for use in value.uses()]
    return bool(uses) and all(permutation(use) in HEADS for use in uses)


def _transpose(node: ir.Node) -> Step | None:
    perm, source, output = permutation(node), node.inputs[0], node.outputs[0]
    shape = sizes(source) or []
    if source is not None and source.dtype == ir.DataType.UINT8:  # where the pixels are cut into patches
        ordered = [shape[axis] for axis in PIXELS[1]] if perm == PIXELS[0] and shape else []
        return (lambda: _turn(node, ordered, perm=PIXELS[1])) if ordered else None
    if perm == SWAP:
        if any(use.node.op_type == "MatMul" for use in output.uses()):
            return None  # one head: [T, N, d] → [N, T, d], which the product needs
        return lambda: _bypass(node)  # tokens come first on both sides now
    if perm == (0, 1, 3, 2) and shape and not _splits_heads(output):
        return lambda: _turn(node, perm=[0, 2, 1])
    if perm == MIXED and shape:  # [N, H, T, d] → [T, N, H, d]: [N · H, T, d] → [T, N · H, d]
        return lambda: _turn(node, [shape[2], None, shape[3]], perm=list(SWAP))
    if perm not in HEADS:
        return None
    return lambda: _turn(node, perm=list(HEADS[perm]))


def _expand(node: ir.Node) -> Step | None:
    """Class and register tokens for each image: the shape (N, tokens, w) is put together by a Concat."""
    shape = producer(node.inputs[1], "Concat")
    if shape is None or len(shape.inputs) != 3 or _rank(node.outputs[0]) != 3:
        return None
    batch, count, width = shape.inputs
    fixed, tokens, token = constant(count), constant(node.inputs[0]), sizes(node.inputs[0])
    # Only the batch may be expanded.
    if token is None or token[0] != 1 or fixed is None or fixed.tolist() != [token[1]]:
        return None
    # [1, tokens, w] → [tokens, 1, w]: nothing to do for one token, and done on the constant for several.
    if token[1] != 1 and tokens is None:
        return None

    def change() -> None:
        if tokens is not None and token[1] != 1:
            by_token = tokens.reshape(tokens.shape[1], 1, tokens.shape[2])
            node.replace_input_with(0, add_constant(graph_of(node), f"{node.name}.by_token", by_token))
        parts, name = [count, batch, width], f"{node.name}.shape"
        target = insert(node, "Concat", parts, name=name, shape=[3], dtype=ir.DataType.INT64, axis=0)
        node.replace_input_with(1, target)
        _turn(node)

    return change


def _arithmetic(node: ir.Node) -> Step | None:
    """Combine with a tensor of the same order, or with a constant: the same for all, or one per token."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None:
            if value is None or sizes(value) != sizes(node.outputs[0]):
                return None
        # One number, and one per feature, broadcast to either order. A table [T, w] is turned to [T, 1, w].
        elif array.size not in (1, array.shape[-1] if array.ndim else 1):
            if _rank(node.outputs[0]) != 3 or array.size != array.shape[-2] * array.shape[-1]:
                return None
            by_token = array.reshape(array.shape[-2], 1, array.shape[-1])
            name = f"{value.name}.by_token"  # type: ignore[union-attr]  # it has an array

            def change(index: int = index, name: str = name, by_token: Array = by_token) -> None:
                node.replace_input_with(index, add_constant(graph_of(node), name, by_token))
                _turn(node)

            return change
    return lambda: _turn(node)


def _concat_or_gather(node: ir.Node) -> Step | None:
    """Concat tokens, or select some, along axis 0 instead of axis 1."""
    value = node.outputs[0] if node.op_type == "Concat" else node.inputs[0]
    along = attribute(node, "axis", 0) == 1 and _rank(value) == 3
    return (lambda: _turn(node, axis=0)) if along else None


def _turn_axes(index: int, node: ir.Node) -> Step | None:
    """Let the input with the axes be 0 in the place of 1."""
    axes = input_constant(node, index)
    if axes is None or axes.tolist() != [1] or _rank(node.inputs[0]) != 3:
        return None

    def change() -> None:
        node.replace_input_with(index, shape_constant(graph_of(node), [0]))
        _turn(node)

    return change


def _matmul(node: ir.Node) -> Step | None:
    """Multiply by head; both sides must hold the images, since a constant one would keep its order."""
    both = all(_rank(value) == 4 and _is_by_image(value) for value in node.inputs)
    return (lambda: _turn(node)) if both else None


def _row_wise(node: ir.Node) -> Step | None:
    """Work on each row alone. The rank of attention's scores changes, so the axis is counted from the end."""
    if attribute(node, "axis", -1) not in (-1, _rank(node.outputs[0]) - 1):
        return None
    has_axis = node.op_type in ("LayerNormalization", "Softmax")
    return (lambda: _turn(node, axis=-1)) if has_axis else lambda: _turn(node)


# Left what was there, right what becomes of it; T tokens, H heads, d features of a head, w of a token.
TABLE: tuple[tuple[str, Rule, str], ...] = (
    ("Reshape", _reshape, "[N·T, w] → [N, T, w] or [N, T, H, d]: [T·N, w] → [T, N, w] or [T, N·H, d]"),
    (
        "Transpose",
        _transpose,
        "[N, T, H, d] → [N, H, T, d]: [T, N·H, d] → [N·H, T, d]; swap of N, T: nothing",
    ),
    ("Slice", partial(_turn_axes, 3), "x[:, a:b]: x[a:b]"),
    ("ReduceMean", partial(_turn_axes, 1), "mean over axis 1: over axis 0"),
    ("Concat", _concat_or_gather, "[x, y] over T, axis 1: axis 0"),
    ("Gather", _concat_or_gather, "x[:, t]: x[t]"),
    ("Expand", _expand, "class token (N, 1, w): (1, N, w)"),
    (" ".join(SCALED), _arithmetic, "x + c[T, w]: x + c[T, 1, w]"),
    ("MatMul", _matmul, "[N, H, T, d] · [N, H, d, T]: [N·H, T, d] · [N·H, d, T]"),
    ("LayerNormalization Softmax Gelu Tanh Erf Sigmoid Relu Identity", _row_wise, "f of each row: the same"),
)
RULES: dict[str, Rule] = {name: rule for names, rule, _ in TABLE for name in names.split()}


# --- The rewrite ---


def tokens_before_batch(model: ir.Model) -> int:
    """Order the rows token by token, not image by image: [T, N, width] in the place of [N, T, width].

    The order of rows makes no difference to linear layers. In attention one head's rows are then
    `[T, N · H, d]` without any copy, a stride that ONNX Runtime's MatMul reads directly, so that the
    transposes of query, key and value are no work (its transpose fusion supports this order only). All of
    the graph changes, or nothing.
    """
    steps: list[Step] = []
    heads = 0
    for node in model.graph:
        if not _is_concerned(node):
            continue
        rule = RULES.get(node.op_type)
        step = rule(node) if rule is not None else None
        if step is None:
            why = "it works across tokens, or differs per image" if rule else "its operator has no rule"
            skip(node, f"{why}; all rows of the model stay ordered image by image")
            return 0
        heads += node.op_type == "Transpose" and (_rank(node.inputs[0]) == 4 or permutation(node) == SWAP)
        steps.append(step)
    # Without heads there is nothing to gain, and what enters or leaves by image must keep its order.
    given = [value for value in model.graph.inputs if value.dtype != ir.DataType.UINT8]
    if not heads or any(_is_by_image(value) for value in (*given, *model.graph.outputs)):
        return 0
    for step in steps:
        step()
    tidy(model)
    return len(steps)
