"""Linear layers: each is named after its module, one Gemm on a matrix, the scales around it folded in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from calibration.graph.edit import (
    Array,
    add_constant,
    by_type,
    constant,
    graph_of,
    input_constant,
    insert,
    insert_reshape,
    only_reader,
    producer,
    replace,
    replace_node,
    reshape_target,
    rewrite_each,
    scalar,
    sizes,
)
from calibration.graph.layers import MatchedLinear, is_per_channel, match_linear, read_linear
from export.graph.skipped import skip

# --- Names ---


SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter writes there which module a node came from


def name_products(model: ir.Model) -> int:
    """Name each product and LayerNormalization after its module: blocks.3.mlp.fc2, blocks.3.attention.mix.

    From torch's own metadata where it is there, else from the weight's, the bias's or the node's name.
    Plans, reports and errors use these names.
    """
    taken: set[str] = set()
    named = 0
    for node in by_type(model, "MatMul", "Gemm", "Conv", "LayerNormalization"):
        name = _find_module_name(node)
        if all(constant(value) is None for value in node.inputs[:2]):
            # One of attention's two products: the mix reads a Softmax, the scores are read by one.
            name += ".scores" if producer(node.inputs[0], "Softmax") is None else ".mix"
        endings = ("", *(f"#{count}" for count in range(2, len(taken) + 2)))
        unique = next(each for ending in endings if (each := name + ending) not in taken)
        taken.add(unique)
        named += node.name != unique
        node.name = unique
    return named


def _find_module_name(node: ir.Node) -> str:
    if scopes := node.metadata_props.get(SCOPES):
        # The modules from the model down to the node, the last one for the node itself.
        modules = [scope.strip(" '\"") for scope in scopes.strip("[]").split(",")]
        if len(modules) >= 2 and modules[-2]:
            return modules[-2]
    reader = only_reader(node.outputs[0])
    for value in (*node.inputs[1:], *(reader.inputs if reader and reader.op_type == "Add" else ())):
        if value is not None and value.name and value.name.endswith((".weight", ".bias")):
            return value.name.rsplit(".", 1)[0]
    # torch's older exporter names nodes like paths: /blocks.3/mlp/fc2/MatMul
    return (node.name or "linear").strip("/").removesuffix("/MatMul").removesuffix("/Gemm").replace("/", ".")


def name_parameters(model: ir.Model) -> int:
    """Name the weight and the bias of each Gemm after it, so that files can be compared by eye."""
    named = 0
    RemoveUnusedNodesPass()(model)  # whose names are free then
    taken = {output.name for node in model.graph for output in node.outputs} | set(model.graph.initializers)
    for node in by_type(model, "Gemm"):
        for value, part in zip(node.inputs[1:], ("weight", "bias"), strict=False):
            name = f"{node.name}.{part}"
            # A parameter that two layers share has no one name.
            alone = value is not None and len(value.uses()) == 1 and value.is_initializer()
            if value is not None and alone and name not in taken:
                value.name = name
                taken.add(name)
                named += 1
    return named


# --- One Gemm per linear layer ---


def linears_to_gemm(model: ir.Model) -> int:
    """MatMul(x, constant) [+ Add(constant)] → Reshape to rows → Gemm → Reshape back.

    A Gemm that is there already gets its weight as `[in, out]` and a bias.

    ONNX Runtime runs a quantized Gemm with an int32 bias in one integer kernel (QGemm); a MatMul and an Add
    end, for some shapes, as a float product.
    """
    return rewrite_each(model, {"MatMul": _replace_matmul, "Gemm": _normalize_gemm})


def _replace_matmul(node: ir.Node) -> bool:
    weight, last = input_constant(node, 1), node
    linear = match_linear(node)
    if linear is None:
        if weight is not None:
            skip(node, f"its weight has {weight.ndim} axes, a linear layer's has 2")
        return False
    reader = only_reader(node.outputs[0])
    if reader is not None and (whole := match_linear(reader)) is not None and whole.product is node:
        last, linear = reader, whole
    target = reshape_target(sizes(last.outputs[0]))
    if target is None:
        return skip(node, "more than one size of its output is not known, so that no Reshape can restore it")
    (rows, features), name = linear.weight.shape, str(node.name)
    parameters = [node.inputs[1], add_constant(graph_of(node), f"{name}.bias", _read_bias(linear))]
    matrix = insert_reshape(last, node.inputs[0], [-1, rows], name=f"{name}.rows", shape=[None, rows])
    node.name = f"{name}.matmul"  # which stays until `tidy`, and leaves its name to the Gemm
    product = insert(last, "Gemm", [matrix, *parameters], name=name, shape=[None, features])
    shape = sizes(last.outputs[0])
    replace(last.outputs[0], insert_reshape(last, product, target, name=f"{name}.grouped", shape=shape))
    return True


def _normalize_gemm(node: ir.Node) -> bool:
    """Fold transB, alpha and beta into the weight and the bias; give the Gemm a bias if it has none."""
    linear = match_linear(node)
    if linear is None:
        if input_constant(node, 1) is not None:
            skip(node, "transA is set, or what it adds is computed or differs between rows")
        return False
    if not linear.is_plain:
        _set_parameters(node, linear.weight, _read_bias(linear))
    return not linear.is_plain


def _read_bias(linear: MatchedLinear) -> Array:
    return np.zeros(linear.weight.shape[1], np.float32) if linear.bias is None else linear.bias


def _set_parameters(node: ir.Node, weight: Array, bias: Array) -> None:
    """Give a Gemm new parameters, `[in, out]` and `[out]`; other readers keep the old ones."""
    node.resize_inputs(3)
    for index, (part, array) in enumerate((("weight", weight), ("bias", bias)), start=1):
        value = add_constant(graph_of(node), f"{node.name}.{part}", np.asarray(array, np.float32))
        node.replace_input_with(index, value)
    for name in ("transB", "alpha", "beta"):
        node.attributes.pop(name, None)


# --- Attention: the scale 1 / √d moves into the query's weights ---


def fold_attention_scale(model: ir.Model) -> int:
    """softmax(c · (a q)(b k)ᵀ) → softmax(q' kᵀ) with q' = a b c q, folded into the query's Gemm.

    With q = x W + v the new query is x (a b c W) + a b c v. The scale of attention, 1 / √d, is equation 1 of
    arXiv 1706.03762; exporters write it in front of the product, behind it, or half of it on each side.
    """
    return rewrite_each(model, {"Softmax": _fold_scale_above})


def _fold_scale_above(softmax: ir.Node) -> bool:
    behind, scores = _strip(softmax.inputs[0])
    product, above = producer(scores, "MatMul"), producer(scores, "Add", "Mul", "Div")
    if product is None or only_reader(product.outputs[0]) is None:
        is_sum, inputs = above is not None and above.op_type == "Add", () if above is None else above.inputs
        if not is_sum and any(constant(each) is not None for each in inputs):
            skip(softmax, "the scale of its scores is not one number: it differs per head, or is zero")
        elif is_sum and any(_strip(each)[0] for each in inputs):
            skip(softmax, "a mask or a position bias is added between the scale and the softmax")
        elif behind:
            skip(softmax, "what is scaled is no product of query and key alone, or something else reads it")
        return False
    before_query, query = _strip(product.inputs[0])
    scalings = [*behind, *before_query, *_strip(product.inputs[1])[0]]
    if not scalings:
        return False
    gemm = producer(query, "Gemm")
    linear = None if gemm is None else read_linear(gemm)
    if gemm is None or linear is None:
        return skip(softmax, "its query is not computed by a linear layer alone")
    # What else reads the query must not read it scaled.
    if query is None or only_reader(query) is None:
        return skip(softmax, "something else reads the query")
    factor = 1.0
    for node in scalings:
        factor *= _read_factor(node) or 0.0
        replace_node(node, _find_scaled_input(node))
    _set_parameters(gemm, linear.weight * factor, linear.bias * factor)
    return True


def _strip(value: ir.Value | None) -> tuple[list[ir.Node], ir.Value | None]:
    """Walk up through scalings and changes of layout: the scalings, and the first value that is neither.

    The walk ends where something else reads a value, which would read it without the scale.
    """
    found: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and only_reader(value) is not None:
        if _read_factor(node) is not None:
            found.append(node)
            value = _find_scaled_input(node)
        elif node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
        else:
            break
    return found, value


def _read_factor(node: ir.Node) -> float | None:
    """The scalar that a Mul or Div applies, or None for any other node."""
    if node.op_type == "Div":
        divisor = scalar(node.inputs[1])
        return 1.0 / divisor if divisor else None
    if node.op_type != "Mul":
        return None
    found = [number for value in node.inputs if (number := scalar(value)) is not None]
    return found[0] if len(found) == 1 else None


def _find_scaled_input(node: ir.Node) -> ir.Value:
    """The input of a scaling that is not the scalar."""
    (source,) = [value for value in node.inputs if value is not None and scalar(value) is None]
    return source


# --- LayerScale: the factor of each feature moves into the linear in front of it ---


def fold_layer_scale(model: ir.Model) -> int:
    """(x W + b) · g → x (W g) + b g, for a constant g of one factor per feature (arXiv 2103.17239).

    One float product with all tokens less, and nothing that keeps their rows from passing through the
    residual; weights with one scale per output feature round as before.
    """
    return rewrite_each(model, {"Mul": _fold_factors})


def _fold_factors(node: ir.Node) -> bool:
    for product, factors in ((a, constant(b)) for a, b in (node.inputs, node.inputs[::-1])):
        gemm = next((each for each in _walk_up_rows(product) if each.op_type == "Gemm"), None)
        linear = None if gemm is None or factors is None else read_linear(gemm)
        if gemm is None or linear is None or product is None or factors is None:
            continue
        # With more axes than the product, the factors would add axes to it.
        if not is_per_channel(factors, len(linear.bias)) or factors.ndim > len(sizes(product) or ()):
            return skip(node, "its factors are not one per output feature of the linear layer above it")
        if any(only_reader(each.outputs[0]) is None for each in _walk_up_rows(product)):
            return skip(node, "something else reads the linear layer above it")
        _set_parameters(gemm, linear.weight * factors.reshape(-1), linear.bias * factors.reshape(-1))
        replace_node(node, product)
        return True
    return False


def _walk_up_rows(value: ir.Value | None) -> Iterator[ir.Node]:
    """Yield the Reshapes above that regroup rows and keep their features, and the node above those."""
    while (node := producer(value)) is not None:
        yield node
        rows, grouped = sizes(node.inputs[0]) or [None], sizes(value) or [None]
        if node.op_type != "Reshape" or rows[-1] is None or rows[-1] != grouped[-1]:
            return
        value = node.inputs[0]
