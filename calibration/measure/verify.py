"""Kernels that ONNX Runtime runs, read from its optimized graph; a check that int8 layers run in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calibration.graph.edit import producer
from calibration.graph.memory import serialize_for_session
from calibration.plan import QuantizationPlan
from runtime.devices import DEVICES, DeviceError
from runtime.errors import FailureError
from runtime.interrupts import raise_on_signal
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort
from runtime.placement import read_placement
from runtime.plugins import find_plugin_device
from runtime.self_test.document import FLOAT_KERNELS, INTEGER_KERNELS
from runtime.session import open_session, session_options
from runtime.text import format_count
from runtime.writing import temporary_folder

UNMEASURED = "every operator between Q/DQ; where they run was not measured"
PAIR = ("QuantizeLinear", "DequantizeLinear")


class FallbackError(FailureError):
    """A layer that the plan calls int8 and that ONNX Runtime would run in float."""


@dataclass(frozen=True)
class Kernels:
    """Content of the optimized graph: operator counts, and the kernel behind each planned layer."""

    counts: Mapping[str, int]
    linears: Mapping[str, str]  # planned int8 linear → its kernel
    products: Mapping[str, str]  # planned int8 product → its kernel
    on_npu: str = ""  # of target "npu": where the operators run, or that it was not measured

    def summary(self) -> str:
        """One line, e.g. "74 of 74 linears and 24 of 24 products in integer kernels"."""
        if self.on_npu:
            return self.on_npu
        linears, products = (
            f"{sum(kernel in INTEGER_KERNELS for kernel in kernels.values())} of {len(kernels)}"
            for kernels in (self.linears, self.products)
        )
        return f"{linears} linears and {products} products in integer kernels"


def read_optimized_graph(model: bytes | Path, target: Target = "any-cpu") -> ir.Model:
    """Return the graph after all optimizations for the CPU at hand, in the session that the runtime opens."""
    options = session_options(threads=1, target=target)
    with raise_on_signal(), temporary_folder() as folder:
        path = folder / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        source = model if isinstance(model, bytes) else str(model)
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return ir.from_proto(ir.to_proto(ir.load(path)))  # in memory: the folder goes


def verify_kernels(model: bytes | Path, plan: QuantizationPlan) -> Kernels:
    """Return the kernel of every layer that the plan calls int8, all of them in integers.

    Args:
        model: the file or its bytes, with the plan written in.
        plan: the plan.

    Raises:
        FallbackError: when one of them became a float product; it names all of those.
    """
    graph = read_optimized_graph(model, plan.target).graph
    kinds = INTEGER_KERNELS | FLOAT_KERNELS
    found = {str(node.name): node.op_type for node in graph if node.op_type in kinds}
    int8_products = [name for name, each in plan.products.items() if each.precision == "int8"]
    kernels = Kernels(
        counts=dict(Counter(node.op_type for node in graph)),
        linears={name: _kernel(name, found) for name in plan.int8_linears()},
        products={name: _kernel(name, found) for name in int8_products},
    )
    both = {**kernels.linears, **kernels.products}
    if fallen := [f"{name} ({kernel})" for name, kernel in both.items() if kernel not in INTEGER_KERNELS]:
        raise FallbackError(
            f"ONNX Runtime would not run {format_count(len(fallen), 'layer')} of the plan in integers: "
            + ", ".join(fallen)
        )
    return kernels


def verify_npu_graph(model: ir.Model, plan: QuantizationPlan) -> Kernels:
    """Return the operators of a graph for an NPU, all enclosed in QuantizeLinear and DequantizeLinear.

    Where Qualcomm's plugin is installed, its compiler (on x86-64, of the simulator) must take all of them, in
    one part.

    Args:
        model: the graph, with the plan written in.
        plan: of target "npu".

    Raises:
        FallbackError: naming the operators that an NPU would leave to the CPU.
    """
    nodes = [node for node in model.graph if node.op_type not in PAIR]
    if outside := [f"{node.name} ({node.op_type})" for node in nodes if not _is_enclosed(node)]:
        raise FallbackError(f"expected Q/DQ around every operator, found none around {', '.join(outside)}")
    counts = dict(Counter(node.op_type for node in model.graph))
    planned = plan.int8_linears()
    linears = {str(node.name): node.op_type for node in nodes if node.name in planned}
    return Kernels(counts=counts, linears=linears, products={}, on_npu=_read_npu_placement(model))


def _is_enclosed(node: ir.Node) -> bool:
    given = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
    made = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    readers = [use.node for value in made for use in value.uses()]
    return all(producer(value, PAIR[1]) for value in given) and all(
        each.op_type == PAIR[0] for each in readers
    )


def _read_npu_placement(model: ir.Model) -> str:
    """Return where the operators of a graph run; that it was not measured where there is no plugin."""
    try:
        find_plugin_device(DEVICES["qnn"])
    except DeviceError:
        return f"{UNMEASURED}: onnxruntime-qnn is not installed"
    with serialize_for_session(model) as data:
        placement = read_placement(open_session(data, device="qnn", threads=1, target="npu"), {})
    if placement is None:
        return f"{UNMEASURED}: onnxruntime is older than 1.24"
    found, others = placement.find("qnn"), [part for part in placement.parts if part.device != "qnn"]
    if others or found.parts != 1:
        raise FallbackError(f"expected all operators on the NPU in one part, found: {placement.to_text()}")
    return f"{format_count(found.nodes, 'node')} on the NPU, in one part"


def _kernel(name: str, products: Mapping[str, str]) -> str:
    """Return the kernel of a layer: a fused node keeps its name, or gets it with a suffix."""
    if name in products:
        return products[name]
    longer = [kernel for other, kernel in products.items() if other.startswith((f"{name}_", f"{name}/"))]
    return longer[0] if len(longer) == 1 else "not found"
