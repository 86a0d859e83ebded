"""The canonical float32 graph of every source: its names, and the embedding as an output. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from calibration.graph.edit import GraphError, by_type, constant, rename, sizes

# Gelu (opset 20) and LayerNormalization (17) are single nodes; Q/DQ keeps int32 biases.
OPSET = 21
INPUT, OUTPUT, EMBEDDING = "pixels", "logits", "embedding"
# Operators between the head's product and the logits.
_BEHIND_HEAD = ("Add", "Reshape", "Squeeze", "Identity", "Cast", "Softmax", "Sigmoid", "Mul", "Div")

_EXPECTED_HEAD = "expected one linear layer that makes the logits"


@dataclass(frozen=True)
class FloatModel:
    """A float32 graph in the form that quantizes well, and how many places each pass changed to get there."""

    model: ir.Model
    passes: Mapping[str, int]


def add_embedding(model: ir.Model) -> int:
    """Add the output `embedding`, float32 [N, D], in place: what the head multiplies; return D.

    Raises:
        GraphError: when the logits are not made by one linear layer of one vector per image.
    """
    value = _find_head_input(model)
    features = _count_features(value, "a tensor", " in front of the head")
    if value.is_graph_input() or value.is_graph_output():
        raise GraphError(f"the head reads {value.name!r}, which is an input or output already")
    rename(model.graph, value, EMBEDDING)
    batch = model.graph.inputs[0].shape
    value.shape = ir.Shape([None if batch is None else batch[0], features])
    model.graph.outputs.append(value)
    return features


def rename_to_embedding(model: ir.Model) -> int:
    """Rename the output of a model without classes to `embedding`, in place, and return its features.

    Raises:
        GraphError: when it is not one vector per image.
    """
    (output,) = model.graph.outputs
    features = _count_features(output, "an output")
    rename(model.graph, output, EMBEDDING)
    return features


def _count_features(value: ir.Value, what: str, where: str = "") -> int:
    shape = sizes(value)
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise GraphError(f"expected one vector per image{where}, found {what} of shape {shape}")
    return shape[1]


def _find_head_input(model: ir.Model) -> ir.Value:
    """Walk up from the logits to the linear layer that made them, and return what it reads."""
    (logits,) = [value for value in model.graph.outputs if value.name == OUTPUT]
    node = logits.producer()
    while node is not None and node not in by_type(model, "Gemm", "MatMul"):
        above = [value for value in node.inputs if value is not None and constant(value) is None]
        if len(above) != 1 or node.op_type not in _BEHIND_HEAD:
            found = f"{node.op_type} {node.name!r} of {len(above)} tensors"
            raise GraphError(f"{_EXPECTED_HEAD}, found {found}; leave --embedding out")
        node = above[0].producer()
    if node is None or node.inputs[0] is None or constant(node.inputs[1]) is None:
        raise GraphError(f"{_EXPECTED_HEAD}, found none; leave --embedding out")
    return node.inputs[0]
