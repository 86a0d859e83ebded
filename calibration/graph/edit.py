"""Small verbs on an ONNX graph (onnx_ir), shared by every pass that rewrites one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass, TopologicalSortPass
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from runtime.errors import FailureError

Array = NDArray[Any]


class GraphError(FailureError):
    """A graph that is not what the pass or the check can work on."""


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initializer or a Constant node, or None where the value is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant with one element, or None."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer under `name`, or under the first free one of `name.1`, `name.2` and so on."""
    unique = _free_name(graph, name)
    array = np.ascontiguousarray(array)
    tensor = ir.Tensor(array, name=unique)
    value = ir.Value(name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def shape_constant(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    """An int64 initializer for Reshape, one for each distinct shape."""
    name = "shape." + "x".join(str(size) for size in shape).replace("-1", "any")
    return shared_constant(graph, name, np.array(shape, np.int64))


def shared_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """The initializer of this name where it holds just this array, else a new one."""
    found = graph.initializers.get(name)
    same = constant(found)
    if found is not None and same is not None and same.dtype == array.dtype and np.array_equal(same, array):
        return found
    return add_constant(graph, name, array)


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    shape: Sequence[int | str | None] | None = None,
    dtype: ir.DataType | None = None,
    **attributes: Any,
) -> ir.Value:
    """A new node in front of `before`, under `name` or the first free one after it; returns its output.

    Args:
        before: the node in front of which it stands.
        op_type: the operator.
        inputs: None for one that is left out.
        name: of the node and of its output.
        shape: of the output; None where it is not known.
        dtype: of the output; None for that of the first input, or what a Cast is `to`.
        attributes: of the operator.
    """
    graph = graph_of(before)
    output = ir.Value(
        name=_free_name(graph, name),
        type=ir.TensorType(dtype or _dtype(op_type, inputs, attributes)),
        shape=None if shape is None else ir.Shape(shape),
    )
    node_names = {node.name for node in graph}
    name = name if name not in node_names else _first_free(name, node_names)
    graph.insert_before(before, ir.node(op_type, inputs, attributes, outputs=[output], name=name))
    return output


def _dtype(op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.DataType:
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    first = inputs[0].dtype if inputs and inputs[0] is not None else None
    return ir.DataType.FLOAT if first is None or op_type == "DequantizeLinear" else first


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Give a value of a graph this name; another one that has it gets the first free one after it."""
    outputs = (output for node in graph for output in node.outputs)
    for other in (*graph.inputs, *graph.initializers.values(), *outputs):
        if other.name == name and other is not value:
            other.name = _free_name(graph, name)
    value.name = name


def _free_name(graph: ir.Graph, name: str) -> str:
    taken = {output.name for node in graph for output in node.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    return name if name not in taken else _first_free(name, taken)


def _first_free(name: str, taken: Set[str | None]) -> str:
    return next(unique for count in itertools.count(1) if (unique := f"{name}.{count}") not in taken)


def stand_in(new: ir.Value, old: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
    """Let `new`, which is computed from `old`, take its name and those readers that it had before."""
    name = str(old.name)
    old.name, new.name = f"{name}.part", name
    for node, index in readers:
        node.replace_input_with(index, new)


def graph_of(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise GraphError(f"node {node.name!r} stands in no graph")
    return node.graph


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old` read `new`; a graph output keeps its name."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.replaced", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """The shape with None for a symbolic dimension, or None when not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def permutation(node: ir.Node | None) -> tuple[int, ...]:
    """The axes of a Transpose in their new order, reversed where it names none; () for any other node."""
    if node is None or node.op_type != "Transpose":
        return ()
    rank = len(sizes(node.outputs[0]) or ())
    return tuple(attribute(node, "perm", range(rank)[::-1]))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or None when there are more, or it leaves the graph."""
    readers = value.uses()
    if len(readers) != 1 or value.is_graph_output():
        return None
    return next(iter(readers)).node


def by_type(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of these types of the standard domain, in graph order, safe to rewrite while walking."""
    return [node for node in model.graph if node.op_type in op_types and node.domain in ("", "ai.onnx")]


def tidy(model: ir.Model) -> None:
    """Drop what nobody reads, restore the order, infer the shapes again."""
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
