"""From the torch model to its canonical float32 ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch

from calibration.graph.edit import GraphError, by_type, constant, rename, sizes
from export.graph.canonicalize import canonicalize
from export.graph.model import EMBEDDING, INPUT, OPSET, OUTPUT, FloatModel
from vit.model import ViT

# --- From the torch model to its canonical float32 ONNX graph ---


def export_float(model: ViT) -> FloatModel:
    """Export with a dynamic batch through torch.onnx (dynamo), then run every rewrite.

    The graph takes `pixels`, uint8 [N, H, W, 3], and gives `logits`, float32 [N, classes].
    """
    exported = export_raw(model)
    return FloatModel(exported, canonicalize(exported))


def export_raw(model: ViT) -> ir.Model:
    """Return the model that torch.onnx.export writes, before any rewrite."""
    pixels = torch.zeros(2, *model.config.image_size, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            (pixels,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no model")
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations and of a torchvision that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# --- The output `embedding` of a float graph: what the last linear layer reads, at no cost ---


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
