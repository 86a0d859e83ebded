"""A few hidden features of an MLP taken out of its integer product, exactly: they are multiplied in float.

After GELU two to eight features can be fifty times as large as the rest, and one step of a range that holds
them is coarser than most values. Which features, is decided once; the graph stays static.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.graph.edit import Array, add_constant, graph_of, insert, only_reader, sizes, stand_in
from calibration.graph.layers import Linear, Sites


@dataclass(frozen=True)
class Hidden:
    """The two linears of an MLP and the activation between them."""

    first: Linear
    activation: ir.Node
    second: Linear


def hidden_of(sites: Sites, second: Linear) -> Hidden | None:
    """The MLP that `second` closes, when its hidden features can be split; else None."""
    activation = second.input.producer()
    if activation is None or activation.op_type != "Gelu" or only_reader(second.input) is None:
        return None
    above = activation.inputs[0]
    first = next((each for each in sites.linears.values() if each.node.outputs[0] is above), None)
    if first is None or above is None or only_reader(above) is None:
        return None
    return Hidden(first, activation, second)


def split_columns(hidden: Hidden, columns: Sequence[int]) -> None:
    """Move hidden features into a float path of their own, which is added by the last Gemm's third input."""
    node, graph = hidden.second.node, graph_of(hidden.second.node)
    moved = np.zeros(hidden.second.weight.shape[0], bool)
    moved[list(columns)] = True
    first, second = hidden.first, hidden.second
    names = f"{first.name}.columns", f"{second.name}.columns"
    count = int(moved.sum())

    def constants(name: str, **arrays: Array) -> list[ir.Value]:
        return [add_constant(graph, f"{name}.{part}", array) for part, array in arrays.items()]

    few = constants(names[0], weight=first.weight[:, moved], bias=first.bias[moved])
    above = insert(first.node, "Gemm", [first.node.inputs[0], *few], name=names[0], shape=[None, count])
    attributes = {key: attr.value for key, attr in hidden.activation.attributes.items()}
    active = insert(
        hidden.activation, "Gelu", [above], name=f"{names[0]}.gelu", shape=[None, count], **attributes
    )
    for linear, weight, bias in (
        (first, first.weight[:, ~moved], first.bias[~moved]),
        (second, second.weight[~moved], second.bias),
    ):
        for index, value in enumerate(constants(f"{linear.name}.rest", weight=weight, bias=bias), start=1):
            linear.node.replace_input_with(index, value)
    for value in (first.node.outputs[0], hidden.activation.outputs[0]):
        value.shape = ir.Shape([None, int((~moved).sum())])
    output = node.outputs[0]
    readers = list(output.uses())
    (few_out,) = constants(names[1], weight=second.weight[moved])
    total = insert(readers[0].node, "Gemm", [active, few_out, output], name=names[1], shape=sizes(output))
    stand_in(total, output, readers)
