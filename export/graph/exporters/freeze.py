"""Fix the batch and turn computed shapes into constants: the graph is run once, and they are read from it.

Exporters write shapes as chains of Shape, Gather, Concat, Where and other operators. With a fixed batch each
of them is a constant, whatever computes it; `free_batch` makes the batch dynamic again.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from calibration.graph.edit import Array, GraphError, constant, graph_of, insert, replace, tidy
from calibration.graph.memory import serialize_for_session
from runtime.onnx_runtime import onnxruntime as ort

BATCH = 2  # what a dynamic batch is fixed to; not 1, which would broadcast without an error
# Operators without a pixel above them whose output is still no constant.
RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})


def freeze_shapes(model: ir.Model, sizes: tuple[int, ...]) -> int:
    """Give the input these sizes, turn all that depends on no pixel into initializers, and set all shapes.

    Raises:
        GraphError: when ONNX Runtime cannot run the graph with an input of this shape.
    """
    (pixels,) = model.graph.inputs
    pixels.shape = ir.Shape(sizes)
    for initializer in model.graph.initializers.values():
        if initializer.const_value is not None:  # what exporters note beside a constant can be wrong
            initializer.shape = ir.Shape(initializer.const_value.shape.numpy())
    take_branches(model)
    ShapeInferencePass(check_type=False, strict_mode=False)(model)  # for the types; not every file has them
    known = _find_known(model)
    # An output without a name is an optional one that is left out.
    computed = [o for node in model.graph for o in node.outputs if o.name and o not in known]
    # The known values that nodes read which need pixels.
    wanted = [v for v in known if any(o not in known for use in v.uses() for o in use.node.outputs)]
    shapes, values = _observe(model, computed, wanted)
    for value, shape in zip(computed, shapes, strict=True):
        value.shape = ir.Shape(shape.tolist())
    for value, array in zip(wanted, values, strict=True):
        _make_constant(model.graph, value, array)
    tidy(model)
    return len(wanted)


def take_branches(model: ir.Model) -> int:
    """If(condition on shapes alone) → the branch that is taken for an input of this shape.

    Exporters write an If where an operator, a Squeeze for example, depends on a size that they do not know.
    The input must have a fixed shape.

    Raises:
        GraphError: when a condition depends on pixels.
    """
    taken = 0
    while branching := [node for node in model.graph if node.op_type == "If"]:
        known = _find_known(model)  # again: a branch that was taken can hold the condition of another one
        decided = [n for n in branching if n.inputs[0] in known or constant(n.inputs[0]) is not None]
        if not decided:
            raise GraphError(
                f"expected shapes that depend on no pixel, found If ({branching[0].name}) whose condition "
                "does; export the model by tracing, not scripting"
            )
        _take(model, decided[0])
        taken += 1
    return taken


def _take(model: ir.Model, node: ir.Node) -> None:
    condition = constant(node.inputs[0])
    if condition is None:
        _, (condition,) = _observe(model, [], [value for value in node.inputs if value is not None])
    branch: ir.Graph = node.attributes["then_branch" if bool(np.all(condition)) else "else_branch"].value
    outer = graph_of(node)
    for key, value in list(branch.initializers.items()):
        del branch.initializers[key]
        value.name = key if key not in outer.initializers else f"{node.name}.{key}"
        outer.register_initializer(value)
    inner, outputs = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(inner)
    for each in inner:
        outer.insert_before(node, each)
    for old, new in zip(node.outputs, outputs, strict=True):
        replace(old, new)
    outer.remove(node, safe=True)


def _find_known(model: ir.Model) -> dict[ir.Value, None]:
    """Return the values that are computed from constants and shapes alone, in graph order."""
    known: dict[ir.Value, None] = {}  # not a set, whose order would differ between two exports
    for node in model.graph:
        # A subgraph reads values of the outer graph that are not among its inputs.
        if node.op_type in RANDOM or node.attributes.get("body") or node.attributes.get("then_branch"):
            continue
        fixed = (each is None or each in known or constant(each) is not None for each in node.inputs)
        if node.op_type == "Shape" or all(fixed):
            known.update(dict.fromkeys(node.outputs))
    return known


def _observe(
    model: ir.Model, computed: list[ir.Value], wanted: list[ir.Value]
) -> tuple[list[Array], list[Array]]:
    """The shapes of `computed` and the arrays of `wanted`, from one run on zeros."""
    observed = model.clone()
    graph = observed.graph
    values = ir.convenience.create_value_mapping(graph)
    graph.outputs.clear()
    for index, value in enumerate(computed):
        shape = ir.Value(name=f"observed.shape.{index}", type=ir.TensorType(ir.DataType.INT64))
        graph.append(ir.node("Shape", [values[str(value.name)]], outputs=[shape]))
        graph.outputs.append(shape)
    graph.outputs.extend(values[str(value.name)] for value in wanted)
    (pixels,) = model.graph.inputs
    if pixels.shape is None or pixels.dtype is None:
        raise GraphError(f"expected an input of known shape and type, found {pixels}")
    zeros = np.zeros(pixels.shape.numpy(), pixels.dtype.numpy())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        with serialize_for_session(observed) as data:
            source = data if isinstance(data, bytes) else str(data)
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        found = session.run(None, {str(pixels.name): zeros})
    except Exception as error:  # pybind's own exception classes, of which there is no list
        raise GraphError(
            f"ONNX Runtime cannot run the model on an input of shape {list(zeros.shape)}: "
            + " ".join(str(error).split())
        ) from error
    return found[: len(computed)], found[len(computed) :]


def _make_constant(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    name, node = str(value.name), value.producer()
    value.name = f"{name}.computed"
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
    shape, dtype = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    fixed = ir.Value(name=name, shape=shape, type=dtype, const_value=tensor)
    graph.register_initializer(fixed)
    if value.is_graph_output() and node is not None:
        # A graph output must be computed by a node, even if it is constant.
        fixed.name, value.name = f"{name}.constant", name
        insert(node, "Identity", [fixed], name=f"{name}.kept")
        return
    replace(value, fixed)
