"""The output `embedding` of a float graph: what the last linear layer reads, at no cost."""

from __future__ import annotations

import onnx_ir as ir

from calibration.graph import GraphError, by_type, constant, rename, sizes
from export.canonical import EMBEDDING, OUTPUT

_MOVES = ("Add", "Reshape", "Squeeze", "Identity", "Cast", "Softmax", "Sigmoid", "Mul", "Div")


def add_embedding(model: ir.Model) -> int:
    """Add the output `embedding`, float32 [N, D], in place, and return its features.

    It is the tensor itself that the head multiplies: nothing is computed for it.

    Raises:
        GraphError: when the logits are not made by one linear layer of one vector per image.
    """
    value = _head_input(model)
    shape = sizes(value)
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise GraphError(
            f"expected one vector per image in front of the head, found a tensor of shape {shape}"
        )
    if value.is_graph_input() or value.is_graph_output():
        raise GraphError(f"the head reads {value.name!r}, which is an input or output already")
    rename(model.graph, value, EMBEDDING)
    value.shape = ir.Shape([_batch(model), shape[1]])
    model.graph.outputs.append(value)
    return shape[1]


def only_embedding(model: ir.Model) -> int:
    """Call the output of a model without classes `embedding`, in place, and return its features.

    Raises:
        GraphError: when it is not one vector per image.
    """
    (output,) = model.graph.outputs
    shape = sizes(output)
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise GraphError(f"expected one vector per image, found an output of shape {shape}")
    rename(model.graph, output, EMBEDDING)
    return shape[1]


def _batch(model: ir.Model) -> int | str | None:
    """Return the name of the first dimension of the input."""
    shape = model.graph.inputs[0].shape
    first = None if shape is None else shape[0]
    return first.value if isinstance(first, ir.SymbolicDim) else first


def _head_input(model: ir.Model) -> ir.Value:
    """Walk up from the logits to the linear layer that made them, and return what it reads."""
    (logits,) = [value for value in model.graph.outputs if value.name == OUTPUT]
    node = logits.producer()
    while node is not None and node not in by_type(model, "Gemm", "MatMul"):
        above = [value for value in node.inputs if value is not None and constant(value) is None]
        if len(above) != 1 or node.op_type not in _MOVES:
            raise GraphError(
                f"expected one linear layer that makes the logits, found {node.op_type} {node.name!r} of "
                f"{len(above)} tensors; leave --embedding out"
            )
        node = above[0].producer()
    if node is None or node.inputs[0] is None or constant(node.inputs[1]) is None:
        raise GraphError("expected one linear layer that makes the logits, found none; leave --embedding out")
    return node.inputs[0]
