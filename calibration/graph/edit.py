"""Read and change an ONNX graph (onnx_ir): the small verbs that every rewrite is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass, TopologicalSortPass
from onnx_ir.passes.common.unused_removal import RemoveUnusedNodesPass

from runtime.errors import FailureError

Array = NDArray[Any]
Sizes = Sequence[int | str | None]  # a number, the name of a symbolic size, None where it is not known


class GraphError(FailureError):
    """A graph that is not what the pass or the check can work on."""


# --- Constants ---


def constant(value: ir.Value | None) -> Array | None:
    """Return the array behind an initializer or a Constant node; None where the value is computed.

    Args:
        value: of a graph; None for an input that is left out, which gives None.
    """
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def input_constant(node: ir.Node, index: int) -> Array | None:
    """Return the array behind an input; None where it is computed, or left out.

    Args:
        node: of any operator.
        index: of the input; the node may have fewer.
    """
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def scalar(value: ir.Value | None) -> float | None:
    """Return the number behind a constant with one element; None for any other value.

    Args:
        value: of a graph; None for an input that is left out.
    """
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Return the value of a new initializer.

    Args:
        graph: gets the initializer.
        name: taken as it is, or with the first free ending of `.1`, `.2` and so on.
        array: of any shape and type.
    """
    tensor = ir.Tensor(np.asarray(array, order="C"), name=_choose_name(name, _value_names(graph)))
    dtype = ir.TensorType(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=dtype, const_value=tensor)
    graph.register_initializer(value)
    return value


def shape_constant(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    """Return an int64 initializer for Reshape, the same one for the same shape.

    Args:
        graph: has or gets the initializer.
        shape: sizes, -1 for the one that Reshape computes.
    """
    name = "shape." + "x".join(str(size) for size in shape).replace("-1", "any")
    return reuse_constant(graph, name, np.array(shape, np.int64))


def reuse_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Return the initializer of this name if it holds this array; add one if not.

    Args:
        graph: has or gets the initializer.
        name: as for `add_constant`.
        array: compared with its type.
    """
    found = graph.initializers.get(name)
    same = constant(found)
    if found is not None and same is not None and same.dtype == array.dtype and np.array_equal(same, array):
        return found
    return add_constant(graph, name, array)


# --- Nodes and values ---


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    shape: Sizes | None = None,
    dtype: ir.DataType | None = None,
    **attributes: Any,
) -> ir.Value:
    """Return the output of a new node in front of another one.

    Args:
        before: the other node.
        op_type: the operator.
        inputs: None for one that is left out.
        name: of the node and of its output; taken with the first free ending of `.1`, `.2` and so on.
        shape: of the output; None where it is not known.
        dtype: of the output; None for that of the first input, or what a Cast is `to`.
        attributes: of the operator.
    """
    graph = graph_of(before)
    output = ir.Value(
        name=_choose_name(name, _value_names(graph)),
        type=ir.TensorType(dtype or _dtype(op_type, inputs, attributes)),
        shape=None if shape is None else ir.Shape(shape),
    )
    name = _choose_name(name, {node.name for node in graph})
    graph.insert_before(before, ir.node(op_type, inputs, attributes, outputs=[output], name=name))
    return output


def insert_reshape(
    before: ir.Node, value: ir.Value | None, target: Sequence[int], *, name: str, shape: Sizes | None
) -> ir.Value:
    """Return the output of a new Reshape to constant sizes.

    Args:
        before: the node in front of which it stands.
        value: what is reshaped.
        target: sizes, -1 for the one that is computed.
        name: as for `insert`.
        shape: as for `insert`.
    """
    inputs = [value, shape_constant(graph_of(before), target)]
    return insert(before, "Reshape", inputs, name=name, shape=shape)


def _dtype(op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]) -> ir.DataType:
    if op_type == "Cast":
        return ir.DataType(attributes["to"])
    first = inputs[0].dtype if inputs and inputs[0] is not None else None
    return ir.DataType.FLOAT if first is None or op_type == "DequantizeLinear" else first


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Rename a value.

    Args:
        graph: holds the value.
        value: an input, an output, an initializer, or anything between.
        name: a value that has it already gets the first free ending of `.1`, `.2` and so on.
    """
    outputs = (output for node in graph for output in node.outputs)
    for other in (*graph.inputs, *graph.initializers.values(), *outputs):
        if other.name == name and other is not value:
            other.name = _choose_name(name, _value_names(graph))
    value.name = name


def _value_names(graph: ir.Graph) -> set[str | None]:
    outputs = {output.name for node in graph for output in node.outputs}
    return outputs.union(graph.initializers, (value.name for value in graph.inputs))


def _choose_name(name: str, taken: Set[str | None]) -> str:
    endings = (f".{count}" for count in itertools.count(1))
    return next(free for end in itertools.chain([""], endings) if (free := name + end) not in taken)


def stand_in(new: ir.Value, old: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
    """Let `new`, which is computed from `old`, take its name and the readers it had before `new`."""
    name = str(old.name)
    old.name, new.name = f"{name}.part", name
    for node, index in readers:
        node.replace_input_with(index, new)


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that a node stands in.

    Args:
        node: of a graph.

    Raises:
        GraphError: when it is in no graph, or in a function.
    """
    if not isinstance(node.graph, ir.Graph):
        raise GraphError(f"node {node.name!r} stands in no graph")
    return node.graph


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of a value read another one.

    Args:
        old: keeps its producer, which `tidy` removes if nothing reads it.
        new: takes the name where `old` is an output of the graph.
    """
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.replaced", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def replace_node(node: ir.Node, new: ir.Value) -> None:
    """Let every reader of a node's first output read another value, and remove the node.

    Args:
        node: of a graph, with one output that is read.
        new: as for `replace`.
    """
    replace(node.outputs[0], new)
    graph_of(node).remove(node, safe=True)


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that computes a value; None for an input, a constant, or another operator.

    Args:
        value: of a graph; None for an input that is left out.
        op_types: the operators that are wanted; none for any.
    """
    node = None if value is None else value.producer()
    return node if node is not None and (not op_types or node.op_type in op_types) else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value; None where there are several, or none.

    Args:
        value: of a graph; an output of the graph gives None.
    """
    readers = value.uses()
    return None if len(readers) != 1 or value.is_graph_output() else next(iter(readers)).node


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """Return the shape of a value, None for a symbolic size; None where not even the rank is known.

    Args:
        value: of a graph; None for an input that is left out.
    """
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def reshape_target(shape: Sequence[int | None] | None) -> list[int] | None:
    """Return a shape as Reshape takes it, -1 for the symbolic size; None when there are two or more.

    Args:
        shape: as `sizes` returns it; None gives None.
    """
    if shape is None or list(shape).count(None) > 1:
        return None
    return [-1 if size is None else size for size in shape]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return the value of an attribute.

    Args:
        node: of any operator.
        name: of the attribute.
        default: the operator's own, for a node without it.
    """
    found = node.attributes.get(name)
    return default if found is None else found.value


def copy_attributes(node: ir.Node) -> dict[str, Any]:
    """Return all attributes of a node, as `insert` takes them.

    Args:
        node: of any operator.
    """
    return {name: attribute.value for name, attribute in node.attributes.items()}


def permutation(node: ir.Node | None) -> tuple[int, ...]:
    """Return the axes of a Transpose in their new order; reversed where the node names none.

    Args:
        node: any other node, and an unknown rank, give (); None for a value that no node computes.
    """
    if node is None or node.op_type != "Transpose":
        return ()
    rank = len(sizes(node.outputs[0]) or ())
    return tuple(attribute(node, "perm", range(rank)[::-1]))


def by_type(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """Return the nodes of these operators, in graph order; the graph may change during the walk.

    Args:
        model: the graph.
        op_types: operators of the standard domain.
    """
    return [node for node in model.graph if node.op_type in op_types and node.domain in ("", "ai.onnx")]


def tidy(model: ir.Model) -> None:
    """Remove what nothing reads, sort the nodes, and infer the shapes again.

    Args:
        model: the graph, changed in place.
    """
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    ShapeInferencePass(check_type=False, strict_mode=False)(model)


def rewrite_each(model: ir.Model, rules: Mapping[str, Callable[[ir.Node], bool]]) -> int:
    """Return how many nodes the rules rewrote; tidy the graph if there is one.

    Args:
        model: the graph, changed in place.
        rules: operators, separated by spaces, to what rewrites one such node and returns whether it did;
            one rule after the other, each in graph order.
    """
    changes = sum(rule(node) for names, rule in rules.items() for node in by_type(model, *names.split()))
    if changes:
        tidy(model)
    return changes
