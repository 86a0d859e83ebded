"""Write a plan into a float graph as QuantizeLinear and DequantizeLinear pairs; standard operators only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calibration.balance import apply_scales, find_groups, leaves_graph
from calibration.graph.edit import add_constant, graph_of, insert, tidy
from calibration.graph.layers import Linear, Sites, find_sites
from calibration.graph.memory import let_go
from calibration.pairs import PairWriter
from calibration.plan import PlanError, QuantizationPlan
from calibration.split import hidden_of, split_columns
from calibration.token_merging.write import merge_tokens

FEW = 16  # linears whose float weights are in memory at a time, where they are read from a file


def write_plan(model: ir.Model, plan: QuantizationPlan) -> ir.Model:
    """Return a copy of the float graph with the plan written in; the float graph stays as it is.

    Args:
        model: a canonical float graph.
        plan: precision and ranges of each layer.

    Raises:
        PlanError: when the plan names a layer that the graph does not have, or gives an int8 layer no range.
    """
    quantized = merge_tokens(model, plan.merging) if plan.merging else model.clone()
    sites = find_sites(quantized)
    for kind, planned, present in (
        ("linear layer", plan.linears, sites.linears),
        ("attention product", plan.products, sites.products),
    ):
        if unknown := [name for name in planned if name not in present]:
            raise PlanError(f"the plan names the {kind} {unknown[0]!r}, the graph has: {', '.join(present)}")
    _balance(sites, plan)
    _correct(find_sites(quantized), plan)
    _split(find_sites(quantized), plan)
    sites = find_sites(quantized)  # with the weights as they are now
    writer = PairWriter(plan)
    for name, product in sites.products.items():
        if (each := plan.products.get(name)) is not None and each.precision == "int8":
            writer.product(product, each)
    for index, (name, linear) in enumerate(sites.linears.items()):
        if index % FEW == 0:
            let_go(quantized)
        if (chosen := plan.linears.get(name)) is None:
            continue
        if chosen.precision == "int8":
            writer.linear(linear, chosen)
        elif chosen.precision == "float16":
            _store_in_half(linear)
    tidy(quantized)
    return quantized


def _balance(sites: Sites, plan: QuantizationPlan) -> None:
    groups = {group.name: group for group in find_groups(sites)}
    for name, balance in plan.balance.items():
        if name not in groups and _gives_output(sites, name):
            raise PlanError(
                f"the plan balances {name!r}, whose numbers are an output of the graph (the embedding): "
                'take it out of "balance", or leave --embedding out'
            )
        if name not in groups:
            raise PlanError(f"the plan balances {name!r}, the graph has these places: {', '.join(groups)}")
        width = groups[name].linears[0].weight.shape[0]
        if len(balance.scales) != width or min(balance.scales) <= 0:
            raise PlanError(f"{name}: expected {width} positive scales, found {len(balance.scales)}")
        apply_scales(groups[name], np.array(balance.scales, np.float32))


def _gives_output(sites: Sites, name: str) -> bool:
    graph = graph_of(next(iter(sites.linears.values())).node)
    return any(node.name == name and leaves_graph(node.outputs[0]) for node in graph)


def _correct(sites: Sites, plan: QuantizationPlan) -> None:
    for name, linear in sites.linears.items():
        correction = plan.linears[name].correction if name in plan.linears else ()
        if correction and len(correction) != len(linear.bias):
            raise PlanError(f"{name}: expected {len(linear.bias)} corrections, found {len(correction)}")
        if correction:
            bias = (linear.bias + np.array(correction)).astype(np.float32)
            linear.node.replace_input_with(
                2, add_constant(graph_of(linear.node), f"{name}.bias.corrected", bias)
            )


def _split(sites: Sites, plan: QuantizationPlan) -> None:
    for name, linear in sites.linears.items():
        columns = plan.linears[name].float_columns if name in plan.linears else ()
        if not columns:
            continue
        hidden = hidden_of(sites, linear)
        if hidden is None or not 0 <= min(columns) <= max(columns) < linear.weight.shape[0]:
            raise PlanError(
                f"{name}: float_columns must be hidden features behind a Gelu, 0 to {len(linear.weight) - 1}"
            )
        split_columns(hidden, columns)


def _store_in_half(linear: Linear) -> None:
    """Store the weight in float16, in front of a Cast that ONNX Runtime does once, when it opens the file.

    Raises:
        PlanError: for a weight that float16 cannot hold.
    """
    if np.abs(linear.weight).max(initial=0) > np.finfo(np.float16).max:
        raise PlanError(f"{linear.name}: its weights exceed float16 (65504); give it precision float32")
    half = linear.weight.astype(np.float16)
    stored = add_constant(graph_of(linear.node), f"{linear.name}.weight.float16", half)
    name, shape = f"{linear.name}.weight.float32", list(half.shape)
    weight = insert(linear.node, "Cast", [stored], name=name, shape=shape, to=int(ir.DataType.FLOAT))
    linear.node.replace_input_with(1, weight)
