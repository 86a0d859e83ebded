"""Tokens before images: rows in the order in which attention reads its heads without moving them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from calibration.graph.edit import (
    Array,
    GraphError,
    add_constant,
    attribute,
    constant,
    graph_of,
    insert,
    permutation,
    replace,
    shape_constant,
    sizes,
    tidy,
)

# --- Kinds of values in a graph: tokens by image, or the rows of heads ---


SCALED = ("Add", "Sub", "Mul", "Div")


def by_image(value: ir.Value | None) -> bool:
    """[N, T, …] with a known T: the order that this pass is there to change."""
    shape = sizes(value)
    if shape is None or len(shape) < 3 or shape[0] is not None or None in shape[1:]:
        return False
    return not of_heads(value)


def of_heads(value: ir.Value | None) -> bool:
    """[N · H, T, …] out of [T, N · H, …]: torch's own attention, which orders its rows so already."""
    node, shape = value.producer() if value is not None else None, sizes(value)
    if node is None or shape is None or len(shape) != 3 or shape[0] is not None:
        return False
    if permutation(node) in ((1, 0, 2), (1, 2, 0)):
        rows = node.inputs[0].producer() if node.inputs[0] is not None else None
        before = sizes(rows.inputs[0]) if rows is not None and rows.op_type == "Reshape" else None
        features = shape[2] if permutation(node)[1] == 0 else shape[1]
        # Heads are narrower than the rows that they were cut from; [T, N, w] is as wide.
        return before is not None and features != before[-1]
    passed_on = ("MatMul", "Softmax", "Transpose", *SCALED)
    return node.op_type in passed_on and any(of_heads(each) for each in node.inputs)


def concerned(node: ir.Node) -> bool:
    """Return whether the node handles tokens by image, or cuts the pixels into them."""
    if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8:
        cast = node.outputs[0].dtype != ir.DataType.UINT8 and by_image(node.outputs[0])
        return node.op_type == "Transpose" or cast
    return any(by_image(value) for value in (*node.inputs, *node.outputs))


def rank(value: ir.Value | None) -> int:
    return len(sizes(value) or ())


def swaps(node: ir.Node) -> bool:
    """[N, T, w] → [T, N, w] or back, in front of and behind torch's own attention."""
    return permutation(node) == (1, 0, 2)


def splits_heads(value: ir.Value) -> bool:
    """[N, T, H, d] rather than [N, H, T, d]: a Reshape made it, or a Reshape takes it."""
    above = value.producer()
    return above is not None and (
        above.op_type == "Reshape" or any(use.node.op_type == "Reshape" for use in value.uses())
    )


def new_shape(shape: list[int | None], *, heads: bool) -> list[int | None]:
    """[N, T, width] → [T, N, width]; [N, T, H, d] → [T, N · H, d]; [N, H, …, …] → [N · H, …, …]."""
    if len(shape) == 3:
        return [shape[1], None, shape[2]]
    return [shape[1], None, shape[3]] if heads else [None, *shape[2:]]


def source_of(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise GraphError(f"expected {node.op_type} ({node.name}) to have an input, found none")
    return value


# --- Rules that order rows token by token: a table of operators, rule and formula ---


Step = Callable[[], None]  # changes one node, once it is known that all can be changed
Rule = Callable[[ir.Node], Step | None]  # how a node changes, or None when it must not
MIXED = (2, 0, 1, 3)  # [N, H, T, d] → [T, N, H, d], as torch writes it
HEADS = {(0, 2, 1, 3): (1, 0, 2), (0, 2, 3, 1): (1, 2, 0)}  # [N, T, H, d] there, [T, N · H, d] here
PIXELS = (0, 1, 3, 2, 4), (1, 3, 0, 2, 4)  # [N, down, patch, across, patch · 3] → rows of patches


def _turned(node: ir.Node, **attributes: int | list[int]) -> None:
    """Give the node other attributes, and its output the shape in the new order."""
    for name, value in attributes.items():
        if isinstance(value, int):
            node.attributes[name] = ir.AttrInt64(name, value)
        else:
            node.attributes[name] = ir.AttrInt64s(name, value)
    output = node.outputs[0]
    if (shape := sizes(output)) is not None and by_image(output):
        output.shape = ir.Shape(new_shape(shape, heads=splits_heads(output)))


def _reshape(node: ir.Node) -> Step | None:
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or after is None or None in before[1:] or None in after[1:]:
        return None
    if len(before) == 3 and len(after) == 4 and of_heads(node.inputs[0]) and before[1:] == after[2:]:
        return lambda: replace(node.outputs[0], source_of(node))  # [N·H, T, d] already
    if len(after) == 2 and after[1] == before[-1] * (before[-2] if len(before) == 4 else 1):  # type: ignore[operator]
        return lambda: None  # rows of a matrix in either order
    if len(after) == 3 and len(before) in (2, 4):
        target = [after[1], -1, after[2]]
    elif len(after) == 4 and len(before) in (2, 3) and _read_as_heads(node.outputs[0]):
        target = [after[1], -1, after[3]]
    else:
        return None

    def change() -> None:
        shape = shape_constant(graph_of(node), [size or 0 for size in target])
        node.replace_input_with(1, shape)
        node.attributes.pop("allowzero", None)
        _turned(node)

    return change


def _read_as_heads(value: ir.Value) -> bool:
    uses = [use.node for use in value.uses()]
    return bool(uses) and all(permutation(use) in HEADS for use in uses)


def _transpose(node: ir.Node) -> Step | None:
    perm, source = permutation(node), node.inputs[0]
    if source is not None and source.dtype == ir.DataType.UINT8:
        return (lambda: _cut(node)) if perm == PIXELS[0] else None
    if swaps(node):
        if any(use.node.op_type == "MatMul" for use in node.outputs[0].uses()):
            return None  # one head: [T, N, d] → [N, T, d], which the product needs
        return lambda: replace(node.outputs[0], source_of(node))
    if perm == (0, 1, 3, 2) and rank(source) == 4 and not splits_heads(node.outputs[0]):
        return lambda: _turned(node, perm=[0, 2, 1])
    if perm == MIXED and rank(source) == 4:
        return lambda: _to_tokens(node)
    if perm not in HEADS:
        return None
    return lambda: _turned(node, perm=list(HEADS[perm]))


def _to_tokens(node: ir.Node) -> None:
    """[N·H, T, d] → [T, N·H, d], in the place of [N, H, T, d] → [T, N, H, d]."""
    shape = sizes(node.outputs[0]) or []
    node.attributes["perm"] = ir.AttrInt64s("perm", (1, 0, 2))
    node.outputs[0].shape = ir.Shape([shape[0], None, shape[-1]])


def _cut(node: ir.Node) -> None:
    shape = sizes(node.inputs[0])
    node.attributes["perm"] = ir.AttrInt64s("perm", PIXELS[1])
    if shape is not None:
        node.outputs[0].shape = ir.Shape([shape[axis] for axis in PIXELS[1]])


def _expand(node: ir.Node) -> Step | None:
    """Class and register tokens for each image: the shape (N, tokens, w) is put together by a Concat."""
    shape = node.inputs[1].producer() if node.inputs[1] is not None else None
    if shape is None or shape.op_type != "Concat" or len(shape.inputs) != 3 or rank(node.outputs[0]) != 3:
        return None
    batch, count, width = shape.inputs
    fixed, tokens = constant(count), constant(node.inputs[0])
    token = sizes(node.inputs[0])
    if token is None or token[0] != 1 or fixed is None or fixed.tolist() != [token[1]]:
        return None
    if token[1] != 1 and tokens is None:
        return None

    def change() -> None:
        if tokens is not None and token[1] != 1:
            by_token = tokens.reshape(tokens.shape[1], 1, tokens.shape[2])
            node.replace_input_with(0, add_constant(graph_of(node), f"{node.name}.by_token", by_token))
        target = insert(
            node,
            "Concat",
            [count, batch, width],
            name=f"{node.name}.shape",
            shape=[3],
            dtype=ir.DataType.INT64,
            axis=0,
        )
        node.replace_input_with(1, target)
        _turned(node)

    return change


def _scaled(node: ir.Node) -> Step | None:
    """With another tensor of the same order, or with a constant: the same for all, or one for each token."""
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None:
            if value is None or sizes(value) != sizes(node.outputs[0]):
                return None
        elif array.size not in (1, array.shape[-1] if array.ndim else 1):
            if rank(node.outputs[0]) != 3 or array.size != array.shape[-2] * array.shape[-1]:
                return None
            by_token = array.reshape(array.shape[-2], 1, array.shape[-1])
            name = f"{value.name if value is not None else node.name}.by_token"

            def change(index: int = index, name: str = name, by_token: Array = by_token) -> None:
                node.replace_input_with(index, add_constant(graph_of(node), name, by_token))
                _turned(node)

            return change
    return lambda: _turned(node)


def _along_tokens(node: ir.Node) -> Step | None:
    """Tokens are axis 0 instead of axis 1."""
    value = node.outputs[0] if node.op_type == "Concat" else node.inputs[0]
    along = attribute(node, "axis", 0) == 1 and rank(value) == 3
    return (lambda: _turned(node, axis=0)) if along else None


def _sliced(node: ir.Node) -> Step | None:
    """A range of tokens; the axes are an input."""
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or axes.tolist() != [1] or rank(node.inputs[0]) != 3:
        return None
    return lambda: _along(node, 3)


def _mean(node: ir.Node) -> Step | None:
    """The mean of all tokens."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or axes.tolist() != [1] or rank(node.inputs[0]) != 3:
        return None
    return lambda: _along(node, 1)


def _along(node: ir.Node, index: int) -> None:
    """Let the input with the axes say 0 in the place of 1."""
    node.replace_input_with(index, shape_constant(graph_of(node), [0]))
    _turned(node)


def _product(node: ir.Node) -> Step | None:
    """Both sides must hold the images: a constant side would not be reordered with the other."""
    both = all(rank(value) == 4 and by_image(value) for value in node.inputs)
    return (lambda: _turned(node)) if both else None


def _row_wise(node: ir.Node) -> Step | None:
    """The last axis stays the last; the ranks of attention's scores change, so it is counted from the end."""
    if attribute(node, "axis", -1) not in (-1, rank(node.outputs[0]) - 1):
        return None
    has_axis = node.op_type in ("LayerNormalization", "Softmax")
    return lambda: _turned(node, **({"axis": -1} if has_axis else {}))


# Left what was there, right what becomes of it; T tokens, H heads, d features of a head, w of a token.
TABLE: tuple[tuple[str, Rule, str], ...] = (
    ("Reshape", _reshape, "[N·T, w] → [N, T, w] or [N, T, H, d]: [T·N, w] → [T, N, w] or [T, N·H, d]"),
    (
        "Transpose",
        _transpose,
        "[N, T, H, d] → [N, H, T, d]: [T, N·H, d] → [N·H, T, d]; a swap of N and T: nothing",
    ),
    ("Slice", _sliced, "x[:, a:b]: x[a:b]"),
    ("ReduceMean", _mean, "mean over axis 1: over axis 0"),
    ("Concat", _along_tokens, "[x, y] over T, axis 1: axis 0"),
    ("Gather", _along_tokens, "x[:, t]: x[t]"),
    ("Expand", _expand, "class token (N, 1, w): (1, N, w)"),
    (" ".join(SCALED), _scaled, "x + c[T, w]: x + c[T, 1, w]"),
    ("MatMul", _product, "[N, H, T, d] · [N, H, d, T]: [N·H, T, d] · [N·H, d, T]"),
    ("LayerNormalization Softmax Gelu Tanh Erf Sigmoid Relu Identity", _row_wise, "f of each row: the same"),
)
RULES: dict[str, Rule] = {name: rule for names, rule, _ in TABLE for name in names.split()}


# --- Tokens before images: rows in the order in which attention reads its heads without moving them ---


def tokens_before_batch(model: ir.Model) -> int:
    """Order the rows token by token, not image by image: [T, N, width] in the place of [N, T, width].

    Linears do not care for the order of rows. Attention does: one head's rows are then `[T, N · H, d]`
    without any copy, a stride that ONNX Runtime's MatMul reads directly, so that the transposes of query, key
    and value are no work (its transpose fusion knows this order only). All of the graph changes, or nothing.
    """
    steps: list[Step] = []
    heads = 0
    for node in model.graph:
        if not concerned(node):
            continue
        rule = RULES.get(node.op_type)
        step = rule(node) if rule is not None else None
        if step is None:
            return 0
        heads += node.op_type == "Transpose" and (rank(node.inputs[0]) == 4 or swaps(node))
        steps.append(step)
    given = [value for value in model.graph.inputs if value.dtype != ir.DataType.UINT8]
    if not heads or any(by_image(value) for value in (*given, *model.graph.outputs)):
        return 0
    for step in steps:
        step()
    tidy(model)
    return len(steps)
