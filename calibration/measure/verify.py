"""Kernels that ONNX Runtime runs, read from its optimized graph; a check that int8 layers run in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calibration.plan import QuantizationPlan
from runtime.errors import FailureError
from runtime.interrupts import raise_on_signal
from runtime.model_file.targets import Target
from runtime.onnx_runtime import onnxruntime as ort
from runtime.self_test.document import FLOAT_KERNELS, INTEGER_KERNELS
from runtime.session import session_options
from runtime.text import format_count
from runtime.writing import temporary_folder


class FallbackError(FailureError):
    """A layer that the plan calls int8 and that ONNX Runtime would run in float."""


@dataclass(frozen=True)
class Kernels:
    """Content of the optimized graph: operator counts, and the kernel behind each planned layer."""

    counts: Mapping[str, int]
    linears: Mapping[str, str]  # planned int8 linear → its kernel
    products: Mapping[str, str]  # planned int8 product → its kernel

    def summary(self) -> str:
        """One line, e.g. "74 of 74 linears and 24 of 24 products in integer kernels"."""
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


def _kernel(name: str, products: Mapping[str, str]) -> str:
    """Return the kernel of a layer: a fused node keeps its name, or gets it with a suffix."""
    if name in products:
        return products[name]
    longer = [kernel for other, kernel in products.items() if other.startswith((f"{name}_", f"{name}/"))]
    return longer[0] if len(longer) == 1 else "not found"
