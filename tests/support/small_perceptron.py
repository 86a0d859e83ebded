"""The smallest ONNX model that every step of an export works on, as another exporter could write it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, PATCH, WIDTH, CLASSES = 16, 8, 24, 3


def perceptron() -> onnx.ModelProto:
    """Patches, one GELU layer on each, their mean, and a classifier: enough for every step of an export."""
    random = np.random.default_rng(0)
    weights = {
        "patch.weight": random.normal(size=(WIDTH, 3, PATCH, PATCH)) / 14,
        "patch.bias": random.normal(size=WIDTH),
        "fc.weight": random.normal(size=(WIDTH, WIDTH)) / 5,
        "fc.bias": random.normal(size=WIDTH),
        "head.weight": random.normal(size=(WIDTH, CLASSES)),
        "head.bias": random.normal(size=CLASSES),
    }
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors += [
        numpy_helper.from_array(np.array([0, WIDTH, -1]), "rows"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "patch.weight", "patch.bias"], ["grid"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["grid", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "fc.weight"], ["product"]),
        helper.make_node("Add", ["product", "fc.bias"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden", "one"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "head.weight", "head.bias"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "perceptron", [images], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
