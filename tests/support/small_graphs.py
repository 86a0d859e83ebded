"""Small ONNX graphs written by hand, for tests that need neither torch nor an exporter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from runtime.onnx_runtime import onnxruntime as ort

ATTENTION = """
    norm1 = LayerNormalization <axis = -1> (x, norm1_scale, norm1_bias)
    query = Gemm(norm1, query_weight, query_bias)
    key = Gemm(norm1, key_weight, key_bias)
    value = Gemm(norm1, value_weight, value_bias)
    query_heads = Reshape(query, heads)
    key_heads = Reshape(key, heads)
    value_heads = Reshape(value, heads)
    query_first = Transpose <perm = [1, 0, 2]> (query_heads)
    key_first = Transpose <perm = [1, 2, 0]> (key_heads)
    value_first = Transpose <perm = [1, 0, 2]> (value_heads)
    scores = MatMul(query_first, key_first)
    probabilities = Softmax <axis = -1> (scores)
    mix = MatMul(probabilities, value_first)
    tokens_first = Transpose <perm = [1, 0, 2]> (mix)
    joined = Reshape(tokens_first, rows)
    proj = Gemm(joined, proj_weight, proj_bias)
    residual = Add(x, proj)
"""
MLP = """
    norm2 = LayerNormalization <axis = -1> (residual, norm2_scale, norm2_bias)
    fc1 = Gemm(norm2, fc1_weight, fc1_bias)
    gelu = Gelu(fc1)
    fc2 = Gemm(gelu, fc2_weight, fc2_bias)
    y = Add(residual, fc2)
"""


def build(
    lines: str,
    constants: Mapping[str, ArrayLike],
    *,
    inputs: str = "float[2, 3, 4] x",
    outputs: str = "float[2, 3, 4] y",
) -> ir.Model:
    """A graph from ONNX's text form, with inferred shapes; each node is named after its first output.

    Args:
        lines: the nodes, `output = Operator <attribute = value> (input, …)`.
        constants: the initializers by name; integers become int64.
        inputs: the types and names of the graph's inputs, for example `uint8[N, 8, 8, 3] pixels`.
        outputs: the same for its outputs.
    """
    header = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({outputs})'
    proto = onnx.parser.parse_model(f"{header} {{ {' '.join(lines.split())} }}")
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return ir.from_proto(inferred)


def block(
    *,
    seed: int = 0,
    tokens: int = 5,
    width: int = 8,
    heads: int = 2,
    hidden: int = 16,
    lines: str = ATTENTION + MLP,
    extra: Mapping[str, ArrayLike] | None = None,
) -> ir.Model:
    """One block of a ViT in canonical form, `x float32 [tokens, width]` to `y` of the same shape.

    Its linears are called query, key, value, proj, fc1 and fc2, its products scores and mix. All parameters
    are random and none is zero or one. `lines` are other nodes, which may read `extra` constants.
    """
    random = np.random.default_rng(seed)

    def draw(*shape: int, mean: float = 0.0) -> NDArray[np.float32]:
        return (random.normal(size=shape) * shape[0] ** -0.5 + mean).astype(np.float32)

    constants: dict[str, ArrayLike] = {
        "heads": np.array([tokens, heads, width // heads]),
        "rows": np.array([tokens, width]),
    }
    for name in ("norm1", "norm2"):
        constants[f"{name}_scale"], constants[f"{name}_bias"] = draw(width, mean=1.0), draw(width)
    sizes = dict.fromkeys(("query", "key", "value", "proj"), (width, width))
    for name, (rows, columns) in (sizes | {"fc1": (width, hidden), "fc2": (hidden, width)}).items():
        constants[f"{name}_weight"], constants[f"{name}_bias"] = draw(rows, columns), draw(columns)
    types = {"inputs": f"float[{tokens}, {width}] x", "outputs": f"float[{tokens}, {width}] y"}
    return build(lines, constants | dict(extra or {}), **types)


def run(
    model: ir.Model, *arrays: NDArray[np.generic], outputs: Sequence[str] | None = None
) -> NDArray[np.float32]:
    """The first output of a graph as it stands, on one CPU thread: ONNX Runtime's own rewrites are off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)}
    return np.asarray(session.run(outputs, feeds)[0])


def node(model: ir.Model, name: str) -> ir.Node:
    """The node of this name.

    Raises:
        KeyError: when there is none.
    """
    found = {str(each.name): each for each in model.graph}
    return found[name]


def op_types(model: ir.Model) -> list[str]:
    """The operators in graph order."""
    return [each.op_type for each in model.graph]
