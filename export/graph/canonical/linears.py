"""Linear layers: named after the model's own modules, and each one Gemm on a matrix."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from calibration.graph.edit import (
    Array,
    add_constant,
    attribute,
    by_type,
    constant,
    graph_of,
    insert,
    only_reader,
    replace,
    scalar,
    shape_constant,
    sizes,
    tidy,
)
from export.graph.canonical.layout import static_shape

# --- Linear layers: named after the model's own modules, and each one Gemm on a matrix ---


SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter writes there which module a node came from


def name_products(model: ir.Model) -> int:
    """Name each product and LayerNormalization after its module: blocks.3.mlp.fc2, blocks.3.attention.mix.

    From torch's own metadata where it is there, else from the weight's, the bias's or the node's name.
    Plans, reports and errors speak in these names.
    """
    taken: set[str] = set()
    named = 0
    for node in by_type(model, "MatMul", "Gemm", "Conv", "LayerNormalization"):
        is_linear = any(constant(value) is not None for value in node.inputs[:2])
        name = _module_name(node) if is_linear else f"{_module_name(node)}.{_role(node)}"
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}#{count}"
        taken.add(unique)
        named += node.name != unique
        node.name = unique
    return named


def _module_name(node: ir.Node) -> str:
    if scopes := node.metadata_props.get(SCOPES):
        modules = [scope.strip(" '\"") for scope in scopes.strip("[]").split(",")]
        if len(modules) >= 2 and modules[-2]:
            return modules[-2]
    parameters = list(node.inputs[1:])
    if (reader := only_reader(node.outputs[0])) is not None and reader.op_type == "Add":
        parameters += list(reader.inputs)
    for value in parameters:
        if value is not None and value.name and value.name.endswith((".weight", ".bias")):
            return value.name.rsplit(".", 1)[0]
    return (node.name or "linear").strip("/").removesuffix("/MatMul").removesuffix("/Gemm").replace("/", ".")


def _role(product: ir.Node) -> str:
    """Which of attention's two products this is: the mix reads a Softmax, the scores are read by one."""
    above = product.inputs[0].producer() if product.inputs[0] is not None else None
    return "mix" if above is not None and above.op_type == "Softmax" else "scores"


def name_parameters(model: ir.Model) -> int:
    """Name the weight and the bias of each Gemm after it, so that files can be compared by eye."""
    named = 0
    RemoveUnusedNodesPass()(model)
    taken = {output.name for node in model.graph for output in node.outputs} | set(model.graph.initializers)
    for node in by_type(model, "Gemm"):
        for value, part in zip(node.inputs[1:], ("weight", "bias"), strict=False):
            name = f"{node.name}.{part}"
            alone = value is not None and len(value.uses()) == 1 and value.is_initializer()
            if value is not None and alone and name not in taken:
                value.name = name
                taken.add(name)
                named += 1
    return named


def linears_to_gemm(model: ir.Model) -> int:
    """MatMul(x, constant) [+ Add(constant)] → Reshape to rows → Gemm → Reshape back.

    A Gemm that is there already gets its weight as `[in, out]` and a bias.

    ONNX Runtime runs a quantized Gemm with an int32 bias in one integer kernel (QGemm); a MatMul and an Add
    end, for some shapes, as a float product.
    """
    changes = sum(_matmul_to_gemm(node) for node in by_type(model, "MatMul"))
    changes += sum(_plain_gemm(node) for node in by_type(model, "Gemm"))
    if changes:
        tidy(model)
    return changes


def _matmul_to_gemm(node: ir.Node) -> bool:
    source, weight = node.inputs[0], constant(node.inputs[1])
    if source is None or weight is None or weight.ndim != 2:
        return False
    last, bias = node, np.zeros(weight.shape[1], np.float32)
    reader = only_reader(node.outputs[0])
    if reader is not None and reader.op_type == "Add":
        found = [constant(value) for value in reader.inputs if value is not node.outputs[0]]
        if found and found[0] is not None and is_one_per_feature(found[0], weight.shape[1]):
            last, bias = reader, found[0].reshape(-1)
    target = static_shape(last.outputs[0])
    if target is None:
        return False
    graph, name = graph_of(node), str(node.name)
    inputs = [node.inputs[1], add_constant(graph, f"{name}.bias", bias)]
    rows = insert(
        last,
        "Reshape",
        [source, shape_constant(graph, [-1, weight.shape[0]])],
        name=f"{name}.rows",
        shape=[None, weight.shape[0]],
    )
    node.name = f"{name}.matmul"
    product = insert(last, "Gemm", [rows, *inputs], name=name, shape=[None, weight.shape[1]])
    grouped = insert(
        last,
        "Reshape",
        [product, shape_constant(graph, target)],
        name=f"{name}.grouped",
        shape=sizes(last.outputs[0]),
    )
    replace(last.outputs[0], grouped)
    return True


def _plain_gemm(node: ir.Node) -> bool:
    """Fold transB, alpha and beta into the weight and the bias; give the Gemm a bias if it has none."""
    weight = constant(node.inputs[1])
    if weight is None or attribute(node, "transA", 0):
        return False
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    matrix = weight.T if attribute(node, "transB", 0) else weight
    plain = not attribute(node, "transB", 0) and attribute(node, "alpha", 1.0) == 1.0
    if plain and attribute(node, "beta", 1.0) == 1.0 and bias is not None and bias.shape == matrix.shape[1:]:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return False
    if bias is not None and bias.size != 1 and not is_one_per_feature(bias, matrix.shape[1]):
        return False
    vector = np.zeros(matrix.shape[1], np.float32)
    if bias is not None:
        vector = np.broadcast_to(bias.reshape(-1), vector.shape) * np.float32(attribute(node, "beta", 1.0))
    set_linear(node, matrix * np.float32(attribute(node, "alpha", 1.0)), vector)
    return True


def is_one_per_feature(array: Array, features: int) -> bool:
    """Return whether an array holds one number per output channel, not one per row."""
    return array.ndim > 0 and array.size == array.shape[-1] == features


def set_linear(node: ir.Node, weight: Array, bias: Array) -> None:
    """Give a Gemm new parameters, `[in, out]` and `[out]`; the old ones stay for who else reads them."""
    graph, name = graph_of(node), str(node.name)
    parameters = {
        "weight": np.asarray(weight, np.float32),
        "bias": np.asarray(bias, np.float32),
    }
    values = [add_constant(graph, f"{name}.{part}", array) for part, array in parameters.items()]
    node.resize_inputs(3)
    for index, value in enumerate(values, start=1):
        node.replace_input_with(index, value)
    for name in ("transB", "alpha", "beta"):
        node.attributes.pop(name, None)


def gemm_parameters(node: ir.Node) -> tuple[Array, Array] | None:
    """`(weight [in, out], bias [out])` of a plain Gemm with constant parameters, or None."""
    if node.op_type != "Gemm" or attribute(node, "transB", 0) or attribute(node, "transA", 0):
        return None
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or bias is None or bias.shape != weight.shape[1:]:
        return None
    return weight, bias


# --- Attention: the scale 1 / √d moves into the query's weights ---


def fold_attention_scale(model: ir.Model) -> int:
    """softmax(c · (a q)(b k)ᵀ) → softmax(q' kᵀ) with q' = a b c q, folded into the query's Gemm.

    Exporters write the scale in front of the product, behind it, or half of it on each side.
    """
    changes = 0
    for softmax in by_type(model, "Softmax"):
        behind, scores = _strip(softmax.inputs[0])
        product = scores.producer() if scores is not None else None
        if product is None or product.op_type != "MatMul" or only_reader(product.outputs[0]) is None:
            continue
        before_q, query = _strip(product.inputs[0])
        before_k, _ = _strip(product.inputs[1])
        scales = behind + before_q + before_k
        # What else reads the query must not see it scaled.
        gemm = query.producer() if query is not None and only_reader(query) is not None else None
        if not scales or gemm is None or gemm_parameters(gemm) is None:
            continue
        factor = 1.0
        for node in scales:
            factor *= _factor(node)  # type: ignore[operator]  # _strip took no other
            replace(node.outputs[0], _source(node))
            graph_of(node).remove(node, safe=True)
        parameters = gemm_parameters(gemm)
        assert parameters is not None  # looked at above
        set_linear(gemm, parameters[0] * factor, parameters[1] * factor)
        changes += 1
    if changes:
        tidy(model)
    return changes


def _strip(value: ir.Value | None) -> tuple[list[ir.Node], ir.Value | None]:
    """Walk up through scalings and changes of layout: the scalings, and the first value that is neither."""
    found: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None and only_reader(value) is not None:
        if _factor(node) is not None:
            found.append(node)
            value = _source(node)
        elif node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
        else:
            break
    return found, value


def _factor(node: ir.Node) -> float | None:
    """The scalar that a Mul or Div applies, or None for any other node."""
    if node.op_type == "Div":
        divisor = scalar(node.inputs[1])
        return 1.0 / divisor if divisor else None
    if node.op_type != "Mul":
        return None
    found = [number for value in node.inputs if (number := scalar(value)) is not None]
    return found[0] if len(found) == 1 else None


def _source(node: ir.Node) -> ir.Value:
    """The input of a scaling that is not the scalar."""
    (source,) = [value for value in node.inputs if value is not None and scalar(value) is None]
    return source


# --- LayerScale: the factor of each feature moves into the linear in front of it ---


def fold_layer_scale(model: ir.Model) -> int:
    """(x W + b) · g → x (W g) + b g, for a constant g of one factor a feature (arXiv 2103.17239).

    A float product with all tokens less, and nothing that keeps their rows from passing through the
    residual; weights with a scale for each output feature round as before.
    """
    changes = 0
    for node in by_type(model, "Mul"):
        for product, other in (node.inputs, node.inputs[::-1]):
            gemm, factors = _gemm_above(product), constant(other)
            parameters = gemm_parameters(gemm) if gemm is not None else None
            if gemm is None or product is None or factors is None or parameters is None:
                continue
            weight, bias = parameters
            if is_one_per_feature(factors, len(bias)) and factors.ndim <= len(sizes(product) or ()):
                set_linear(gemm, weight * factors.reshape(-1), bias * factors.reshape(-1))
                replace(node.outputs[0], product)
                graph_of(node).remove(node, safe=True)
                changes += 1
                break
    if changes:
        tidy(model)
    return changes


def _gemm_above(value: ir.Value | None) -> ir.Node | None:
    """The Gemm that made a value which nothing else reads, directly or through a Reshape of its rows."""
    if value is None or only_reader(value) is None:
        return None
    node = value.producer()
    if node is None or node.op_type != "Reshape":
        return node
    rows, grouped = sizes(node.inputs[0]), sizes(value)
    same_features = rows is not None and grouped is not None and rows[-1] == grouped[-1] is not None
    return _gemm_above(node.inputs[0]) if same_features else None
