"""Tokens before images: rows in the order in which attention reads its heads without moving them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from calibration.graph import (
    Array,
    add_constant,
    attribute,
    constant,
    graph_of,
    insert,
    shape_constant,
    sizes,
    tidy,
)

Step = Callable[[], None]  # changes one node, once it is known that all can be changed
Rule = Callable[[ir.Node], Step | None]  # how a node changes, or None when it must not
HEADS = {(0, 2, 1, 3): (1, 0, 2), (0, 2, 3, 1): (1, 2, 0)}  # [N, T, H, d] there, [T, N · H, d] here
PIXELS = (0, 1, 3, 2, 4), (1, 3, 0, 2, 4)  # [N, down, patch, across, patch · 3] → rows of patches


def tokens_before_batch(model: ir.Model) -> int:
    """Order the rows token by token, not image by image: [T, N, width] in the place of [N, T, width].

    Linears do not care for the order of rows. Attention does: one head's rows are then `[T, N · H, d]`
    without any copy, a stride that ONNX Runtime's MatMul reads directly, so that the transposes of query, key
    and value are no work (its transpose fusion knows this order only). All of the graph changes, or nothing.
    """
    steps: list[Step] = []
    heads = 0
    for node in model.graph:
        if not _concerned(node):
            continue
        rule = RULES.get(node.op_type)
        step = rule(node) if rule is not None else None
        if step is None:
            return 0
        heads += node.op_type == "Transpose" and _rank(node.inputs[0]) == 4
        steps.append(step)
    if not heads or any(_by_image(output) for output in model.graph.outputs):
        return 0
    for step in steps:
        step()
    tidy(model)
    return len(steps)


def _by_image(value: ir.Value | None) -> bool:
    """[N, T, …] with a known T: the order that this pass is there to change."""
    shape = sizes(value)
    return shape is not None and len(shape) >= 3 and shape[0] is None and None not in shape[1:]


def _concerned(node: ir.Node) -> bool:
    """Whether the node handles tokens by image, or cuts the pixels into them."""
    if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.UINT8:
        return node.op_type == "Transpose"
    return any(_by_image(value) for value in (*node.inputs, *node.outputs))


def _rank(value: ir.Value | None) -> int:
    return len(sizes(value) or ())


def _turned(node: ir.Node, **attributes: int | list[int]) -> None:
    """Give the node other attributes, and its output the shape in the new order."""
    for name, value in attributes.items():
        if isinstance(value, int):
            node.attributes[name] = ir.AttrInt64(name, value)
        else:
            node.attributes[name] = ir.AttrInt64s(name, value)
    output = node.outputs[0]
    if (shape := sizes(output)) is not None and _by_image(output):
        output.shape = ir.Shape(_new_shape(shape, heads=_splits_heads(output)))


def _new_shape(shape: list[int | None], *, heads: bool) -> list[int | None]:
    """[N, T, width] → [T, N, width]; [N, T, H, d] → [T, N · H, d]; [N, H, …, …] → [N · H, …, …]."""
    if len(shape) == 3:
        return [shape[1], None, shape[2]]
    return [shape[1], None, shape[3]] if heads else [None, *shape[2:]]


def _splits_heads(value: ir.Value) -> bool:
    """[N, T, H, d] rather than [N, H, T, d]: a Reshape made it, or a Reshape takes it."""
    above = value.producer()
    return above is not None and (
        above.op_type == "Reshape" or any(use.node.op_type == "Reshape" for use in value.uses())
    )


def _reshape(node: ir.Node) -> Step | None:
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or after is None or None in before[1:] or None in after[1:]:
        return None
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
    return bool(uses) and all(
        use.op_type == "Transpose" and tuple(attribute(use, "perm", ())) in HEADS for use in uses
    )


def _transpose(node: ir.Node) -> Step | None:
    perm, source = tuple(attribute(node, "perm", ())), node.inputs[0]
    if source is not None and source.dtype == ir.DataType.UINT8:
        return (lambda: _cut(node)) if perm == PIXELS[0] else None
    if perm not in HEADS:
        return None
    return lambda: _turned(node, perm=list(HEADS[perm]))


def _cut(node: ir.Node) -> None:
    shape = sizes(node.inputs[0])
    node.attributes["perm"] = ir.AttrInt64s("perm", PIXELS[1])
    if shape is not None:
        node.outputs[0].shape = ir.Shape([shape[axis] for axis in PIXELS[1]])


def _expand(node: ir.Node) -> Step | None:
    """The class token for each image: the shape (N, 1, …) is put together by a Concat."""
    shape = node.inputs[1].producer() if node.inputs[1] is not None else None
    if shape is None or shape.op_type != "Concat" or len(shape.inputs) != 3 or _rank(node.outputs[0]) != 3:
        return None
    batch, one, width = shape.inputs
    fixed = constant(one)
    token = sizes(node.inputs[0])
    if token is None or token[:-1] != [1, 1] or fixed is None or fixed.tolist() != [1]:
        return None

    def change() -> None:
        target = insert(
            node,
            "Concat",
            [one, batch, width],
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
            if _rank(node.outputs[0]) != 3 or array.size != array.shape[-2] * array.shape[-1]:
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
    along = attribute(node, "axis", 0) == 1 and _rank(value) == 3
    return (lambda: _turned(node, axis=0)) if along else None


def _product(node: ir.Node) -> Step | None:
    """Both sides must hold the images: a constant side would not be reordered with the other."""
    both = all(_rank(value) == 4 and _by_image(value) for value in node.inputs)
    return (lambda: _turned(node)) if both else None


def _row_wise(node: ir.Node) -> Step | None:
    """The last axis stays the last; the ranks of attention's scores change, so it is counted from the end."""
    if attribute(node, "axis", -1) not in (-1, _rank(node.outputs[0]) - 1):
        return None
    has_axis = node.op_type in ("LayerNormalization", "Softmax")
    return lambda: _turned(node, **({"axis": -1} if has_axis else {}))


# Left what was there, right what becomes of it; T tokens, H heads, d features of a head, w of a token.
TABLE: tuple[tuple[str, Rule, str], ...] = (
    ("Reshape", _reshape, "[N·T, w] → [N, T, w] or [N, T, H, d]: [T·N, w] → [T, N, w] or [T, N·H, d]"),
    ("Transpose", _transpose, "[N, T, H, d] → [N, H, T, d]: [T, N·H, d] → [N·H, T, d]"),
    ("Concat", _along_tokens, "[x, y] over T, axis 1: axis 0"),
    ("Gather", _along_tokens, "x[:, t]: x[t]"),
    ("Expand", _expand, "class token (N, 1, w): (1, N, w)"),
    ("Add Sub Mul Div", _scaled, "x + c[T, w]: x + c[T, 1, w]"),
    ("MatMul", _product, "[N, H, T, d] · [N, H, d, T]: [N·H, T, d] · [N·H, d, T]"),
    ("LayerNormalization Softmax Gelu Tanh Erf Sigmoid Relu Identity", _row_wise, "f of each row: the same"),
)
RULES: dict[str, Rule] = {name: rule for names, rule, _ in TABLE for name in names.split()}
