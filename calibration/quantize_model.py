"""Static quantization in one call: observe, decide, correct, write, check."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.correct import CORRECTION_IMAGES, correct_biases
from calibration.decide import decide_plan
from calibration.graph.edit import Array
from calibration.graph.layers import find_layers
from calibration.graph.memory import release_memory, serialize_for_session
from calibration.measure.verify import Kernels, verify_kernels, verify_npu_graph
from calibration.npu_graph import decide_npu_plan
from calibration.observe import observe_activations
from calibration.plan import PlanError, Precision, QuantizationPlan
from calibration.write import write_plan
from runtime.model_file.targets import Target


@dataclass(frozen=True)
class QuantizedModel:
    """An INT8 model whose int8 layers run in integer kernels, with its plan and those kernels."""

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
) -> QuantizedModel:
    """Return a canonical float model in INT8, calibrated on images, with its plan.

    Args:
        model: the graph of a model.onnx that `python -m export` wrote; it stays as it is.
        images: calibration set in batches of `uint8 [N, H, W, 3]`, preprocessed to the model's size; they are
            streamed, and a few hundred are enough.
        target: form of the int8 weights: "any-cpu" is exact on every CPU, "full-range" needs VNNI, ARM or a
            GPU; "npu" has quantized numbers between all operators, and takes one image at a time.
        keep_float: names of linear layers and attention products that stay in float32; none for "npu".
        quantize_products: quantize the attention products, too; they stay in float32 by default.
        single_rows: precision of the linears that see one row per image, such as the head.
        threads: CPU threads; None takes every core that this process may use.

    Raises:
        PlanError: when `keep_float` names what is not in the graph.
        FallbackError: when ONNX Runtime would run an int8 layer in float.
        GraphError: when there is nothing to quantize, or no image.
    """
    if target == "npu":
        if keep_float:
            raise PlanError(
                "target npu has every layer in int8, so that one part runs on it; keep none in float"
            )
        return apply_plan(model, decide_npu_plan(model, images, threads=threads))
    layers = find_layers(model)
    first: list[Array] = []
    observed = observe_activations(model, layers.activations, _keep_first(images, first), threads=threads)
    release_memory(model)
    plan = decide_plan(
        layers,
        observed,
        target=target,
        keep_float=keep_float,
        quantize_products=quantize_products,
        single_rows=single_rows,
    )
    del observed, layers  # up to a gigabyte of samples and weights
    release_memory(model)
    return apply_plan(model, correct_biases(model, plan, first, threads=threads))


def _keep_first(batches: Iterable[Array], kept: list[Array]) -> Iterator[Array]:
    """Yield the batches, and keep the first images for the corrections."""
    for batch in batches:
        # Copies: a caller may use one array for all batches.
        kept += [image.copy() for image in np.split(batch, len(batch))[: CORRECTION_IMAGES - len(kept)]]
        yield batch


def apply_plan(model: ir.Model, plan: QuantizationPlan) -> QuantizedModel:
    """Return the INT8 model that a plan makes of a canonical float model; check its kernels.

    Args:
        model: the float graph; it stays as it is.
        plan: of this graph, for example from `read_plan`.

    Raises:
        PlanError: when the plan does not fit the graph.
        FallbackError: when ONNX Runtime would run an int8 layer in float.
    """
    written = write_plan(model, plan)
    if plan.target == "npu":
        release_memory(model)
        return QuantizedModel(written, plan, verify_npu_graph(written, plan))
    with serialize_for_session(written) as data:
        release_memory(model)
        return QuantizedModel(written, plan, verify_kernels(data, plan))
