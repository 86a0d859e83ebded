"""The whole of static quantization in one call: observe, decide, write, check."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from calibration.decide import decide
from calibration.graph.edit import Array
from calibration.graph.layers import find_sites
from calibration.graph.memory import let_go, serialized
from calibration.measure.verify import Kernels, check_kernels
from calibration.observe import observe
from calibration.plan import Precision, QuantizationPlan
from calibration.write import write_plan
from runtime.model_file.targets import Target


@dataclass(frozen=True)
class Quantized:
    """An INT8 model that was checked to run in integer kernels, and how it came about."""

    model: ir.Model
    plan: QuantizationPlan
    kernels: Kernels


def quantize(
    model: ir.Model,
    images: Iterable[Array],
    *,
    target: Target,
    keep_float: Collection[str] = (),
    quantize_products: bool = False,
    single_rows: Precision = "float16",
    threads: int | None = None,
) -> Quantized:
    """Quantize a canonical float model with batches of images `uint8 [N, H, W, 3]`, which are streamed.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
        FallbackError: when ONNX Runtime would run an int8 layer in float.
        GraphError: when there is nothing to quantize, or no image.
    """
    sites = find_sites(model)
    observed = observe(model, sites.observed(), images, threads=threads)
    let_go(model)
    plan = decide(
        sites,
        observed,
        target=target,
        keep_float=keep_float,
        quantize_products=quantize_products,
        single_rows=single_rows,
    )
    del observed, sites  # up to a gigabyte of samples and weights
    let_go(model)
    return apply_plan(model, plan)


def apply_plan(model: ir.Model, plan: QuantizationPlan) -> Quantized:
    """Write a plan into the float model and check the kernels; errors as of `quantize`."""
    written = write_plan(model, plan)
    with serialized(written) as data:
        let_go(model)
        return Quantized(written, plan, check_kernels(data, plan))
