"""Each rule that follows the batch, on a graph of its own: many images give what each image gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.graph.edit import GraphError
from export.graph.exporters.batch import RULES, free_batch
from export.graph.exporters.freeze import freeze_shapes
from runtime.onnx_runtime import onnxruntime as ort
from tests.support.small_graphs import build

FIXED = 2
Node = tuple[str, list[str], dict[str, Any]]
INT = np.int64


def graph(shape: Sequence[int], nodes: Sequence[Node], constants: dict[str, Any]) -> onnx.ModelProto:
    """A model from float `x` of a shape for two images to the output of the last node, `y0`, `y1`, …"""
    made = [helper.make_node(op, inputs, [f"y{i}"], **given) for i, (op, inputs, given) in enumerate(nodes)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [FIXED, *shape])
    y = helper.make_empty_tensor_value_info(f"y{len(nodes) - 1}")
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    proto = helper.make_graph(made, "case", [x], [y], arrays)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def freed(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    x = found.graph.inputs[0]
    assert x.shape is not None
    freeze_shapes(found, tuple(x.shape.numpy()))
    free_batch(found)
    return ir.to_proto(found)


RANDOM = np.random.default_rng(0)
WINDOWS = RANDOM.normal(size=(3, 1, 4)).astype(np.float32)  # a constant for each of an image's three windows
MATRICES = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
PARTS = (FIXED * 3, 2, 4)

# name: the shape of one image, nodes, constants. Where the batch is not the first axis of the output, the
# last node brings it there.
CASES: dict[str, tuple[list[int], list[Node], dict[str, Any]]] = {
    "pad": ([3, 4], [("Pad", ["x", "p"], {})], {"p": np.array([0, 1, 0, 0, 0, 2], INT)}),
    "pad, axes named": (
        [3, 4],
        [("Pad", ["x", "p", "", "a"], {})],
        {"p": np.array([1, 2], INT), "a": np.array([-1], INT)},
    ),
    "tile": ([3, 4], [("Tile", ["x", "r"], {})], {"r": np.array([1, 2, 1], INT)}),
    "conv transpose": (
        [2, 3, 3],
        [("ConvTranspose", ["x", "w"], {"strides": [2, 2]})],
        {"w": RANDOM.normal(size=(2, 3, 2, 2)).astype(np.float32)},
    ),
    "blocks that overlap": (
        [18, 4],
        [("Col2Im", ["x", "i", "b"], {"strides": [2, 2], "pads": [1, 1, 1, 1]})],
        {"i": np.array([4, 4], INT), "b": np.array([3, 3], INT)},
    ),
    "resize to sizes": (
        [2, 3, 3],
        [("Resize", ["x", "", "", "s"], {"mode": "linear"})],
        {"s": np.array([FIXED, 2, 6, 5], INT)},
    ),
    "resize by scales": (
        [2, 3, 3],
        [("Resize", ["x", "", "s"], {"mode": "nearest"})],
        {"s": np.array([1, 1, 2, 1], np.float32)},
    ),
    "einsum": ([3, 4], [("Einsum", ["x", "w"], {"equation": "nij,jk->nki"})], {"w": MATRICES[0]}),
    "cumulated sum": ([3, 4], [("CumSum", ["x", "a"], {})], {"a": np.array(1, INT)}),
    "largest": ([3, 4], [("ArgMax", ["x"], {"axis": 2, "keepdims": 0})], {}),
    "depth to space": ([8, 2, 2], [("DepthToSpace", ["x"], {"blocksize": 2})], {}),
    "a mask for each window": (
        [3, 2, 4],
        [
            ("Reshape", ["x", "windows"], {}),
            ("Add", ["y0", "mask"], {}),
            ("Reshape", ["y1", "images"], {}),
        ],
        {
            "windows": np.array(PARTS, INT),
            "mask": np.tile(WINDOWS, (FIXED, 1, 1)),
            "images": np.array([FIXED, 3, 2, 4], INT),
        },
    ),
    "a matrix for each window": (
        [3, 2, 4],
        [
            ("Reshape", ["x", "windows"], {}),
            ("MatMul", ["y0", "matrices"], {}),
            ("Reshape", ["y1", "images"], {}),
        ],
        {
            "windows": np.array(PARTS, INT),
            "matrices": np.tile(MATRICES, (FIXED, 1, 1)),
            "images": np.array([FIXED, 3, 2, 5], INT),
        },
    ),
    "a query for each image's heads": (
        [3, 2, 4],
        [
            ("Reshape", ["x", "windows"], {}),
            ("Transpose", ["y0"], {"perm": [0, 2, 1]}),
            ("MatMul", ["query", "y1"], {}),
            ("Reshape", ["y2", "images"], {}),
        ],
        {
            "windows": np.array(PARTS, INT),
            "query": np.tile(WINDOWS, (FIXED, 1, 1)),
            "images": np.array([FIXED, 3, 2], INT),
        },
    ),
    "strides that only regroup": (
        [6],
        [("Reshape", ["x", "flat"], {}), ("Gather", ["y0", "i"], {})],
        {"flat": np.array([-1], INT), "i": np.arange(FIXED * 6).reshape(FIXED, 2, 3)},
    ),
    "strides that overlap": (
        [6],
        [("Reshape", ["x", "flat"], {}), ("Gather", ["y0", "i"], {})],
        {
            "flat": np.array([-1], INT),
            "i": np.array([[[0, 1, 2], [2, 3, 4], [1, 0, 5]], [[6, 7, 8], [8, 9, 10], [7, 6, 11]]], INT),
        },
    ),
    "a class token": (
        [3, 4],
        [("Concat", ["token", "x"], {"axis": 1})],
        {"token": np.tile(RANDOM.normal(size=(1, 2, 4)).astype(np.float32), (FIXED, 1, 1))},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_images_gives_what_each_image_gives(name: str) -> None:
    shape, nodes, constants = CASES[name]
    original = graph(shape, nodes, constants)
    free = freed(original)
    images = np.random.default_rng(1).normal(size=(5, *shape)).astype(np.float32)
    expected = [run(original, np.stack([image] * FIXED))[0] for image in images]
    np.testing.assert_allclose(run(free, images), np.stack(expected), rtol=1e-5, atol=1e-6)


LOST: dict[str, tuple[list[int], list[Node], dict[str, Any]]] = {
    "Pad": ([3], [("Pad", ["x", "p"], {})], {"p": np.array([1, 0, 0, 0], INT)}),
    "Tile": ([3], [("Tile", ["x", "r"], {})], {"r": np.array([2, 1], INT)}),
    "Einsum": ([3], [("Einsum", ["x", "w"], {"equation": "nj,n->nj"})], {"w": np.ones(FIXED, np.float32)}),
    "CumSum": ([3], [("CumSum", ["x", "a"], {})], {"a": np.array(0, INT)}),
    "ArgMax": ([3], [("ArgMax", ["x"], {"axis": 0})], {}),
    "Gather": ([3], [("Gather", ["x", "i"], {})], {"i": np.array([1, 0], INT)}),
    "Add": ([3], [("Add", ["x", "c"], {})], {"c": np.array([[1], [2]], np.float32)}),
    "Softmax": ([3], [("Softmax", ["x"], {"axis": 0})], {}),
    "Det": ([3, 3], [("Det", ["x"], {})], {}),  # an operator without a rule
}


@pytest.mark.parametrize("operator", LOST)
def test_what_mixes_images_is_refused_by_name(operator: str) -> None:
    with pytest.raises(GraphError, match=f"lost it at {operator}"):
        freed(graph(*LOST[operator]))


def test_every_operator_has_one_rule() -> None:
    from export.graph.exporters.batch import LAYOUT
    from export.graph.exporters.batch_rules import ARITHMETIC

    names = [name for names, _, _ in (*ARITHMETIC, *LAYOUT) for name in names.split()]
    assert len(names) == len(set(names)) == len(RULES)
    assert all(onnx.defs.has(name) for name in names if name not in ("RMSNormalization", "Swish"))


@pytest.mark.parametrize(
    ("lines", "output"),
    [
        ("y = Concat<axis = 0>(x, c)", "float[4, 3, 4]"),  # something beside the images
        ("y = ReduceMean<keepdims = 1>(x, zeroth)", "float[1, 3, 4]"),  # a mean over the images
        ("y = Add(x, c)", "float[2, 3, 4]"),  # each image its own constant
    ],
)
def test_what_mixes_the_two_images_is_refused(lines, output) -> None:
    model = build(
        lines, {"c": RANDOM.normal(size=(2, 3, 4)).astype(np.float32), "zeroth": [0]}, outputs=f"{output} y"
    )
    with pytest.raises(GraphError, match="expected to follow the batch"):
        free_batch(model)
