"""A few hidden features of an MLP taken out of its integer product, exactly: they are multiplied in float.

After GELU two to eight features can be fifty times as large as the rest, and one step of a range that holds
them is coarser than most values. LLM.int8() (arXiv 2208.07339, equation 8) splits a product in this way, by
features that it finds anew for every input. Here calibration decides once which ones; the graph stays static.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, add_constant, graph_of, insert, only_reader, sizes, stand_in
from calibration.graph.layers import GraphLayers, Linear
from calibration.plan import LinearPlan


@dataclass(frozen=True)
class MlpLayers:
    """The two linears of an MLP and the activation between them."""

    first: Linear
    activation: ir.Node
    second: Linear


def find_mlp_to_split(layers: GraphLayers, second: Linear) -> MlpLayers | None:
    """Return the MLP that `second` closes, when its hidden features can be split; else None."""
    activation = second.input.producer()
    # A second reader of the hidden features would miss the columns that are split off.
    if activation is None or activation.op_type != "Gelu" or only_reader(second.input) is None:
        return None
    linears = layers.linears.values()
    first = next((each for each in linears if each.node.outputs[0] is activation.inputs[0]), None)
    if first is None or only_reader(first.node.outputs[0]) is None:
        return None
    return MlpLayers(first, activation, second)


def find_planned_splits(
    layers: GraphLayers, plans: Mapping[str, LinearPlan]
) -> Iterator[tuple[MlpLayers, tuple[int, ...]]]:
    """Yield each MLP whose hidden features the plans split, with the indices of those features."""
    for name, linear in layers.linears.items():
        columns = plans[name].float_columns if name in plans else ()
        if columns and (mlp := find_mlp_to_split(layers, linear)) is not None:
            yield mlp, columns


def split_float_columns(mlp: MlpLayers, columns: Sequence[int]) -> None:
    """Move hidden features into a float path of their own (LLM.int8(), equation 8).

    The integer product enters the float Gemm as its third input, so that the sum needs no operator.
    """
    first, second = mlp.first, mlp.second
    graph = graph_of(second.node)
    in_float = np.isin(np.arange(len(second.weight)), columns)
    count = int(in_float.sum())

    def add_constants(name: str, **arrays: Array) -> list[ir.Value]:
        return [add_constant(graph, f"{name}.{part}", array) for part, array in arrays.items()]

    name = f"{first.name}.columns"
    few = add_constants(name, weight=first.weight[:, in_float], bias=first.bias[in_float])
    above = insert(first.node, "Gemm", [first.node.inputs[0], *few], name=name, shape=[None, count])
    attributes = {key: attribute.value for key, attribute in mlp.activation.attributes.items()}
    active = insert(mlp.activation, "Gelu", [above], name=f"{name}.gelu", shape=[None, count], **attributes)
    for linear, weight, bias in (
        (first, first.weight[:, ~in_float], first.bias[~in_float]),
        (second, second.weight[~in_float], second.bias),
    ):
        rest = add_constants(f"{linear.name}.rest", weight=weight, bias=bias)
        for index, value in enumerate(rest, start=1):
            linear.node.replace_input_with(index, value)
    for value in (first.node.outputs[0], mlp.activation.outputs[0]):
        value.shape = ir.Shape([None, int((~in_float).sum())])
    name, output = f"{second.name}.columns", second.node.outputs[0]
    readers = list(output.uses())
    (few_out,) = add_constants(name, weight=second.weight[in_float])
    total = insert(readers[0].node, "Gemm", [active, few_out, output], name=name, shape=sizes(output))
    stand_in(total, output, readers)
