"""The kernels that ONNX Runtime runs are read back; a layer that fell back to float is a named error."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import add_constant, by_type, graph_of
from calibration.measure.verify import FallbackError, verify_kernels
from calibration.quantize_model import quantize
from calibration.write import write_plan
from runtime.self_test.document import INTEGER_KERNELS


@pytest.fixture(scope="module")
def plan(canonical, models, pixels_for):
    images = [pixels_for(models["plain"].config, count=8)]
    return quantize(
        canonical["plain"], images, target="any-cpu", quantize_products=True, single_rows="int8"
    ).plan


def to_bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


@pytest.mark.parametrize("name", ["plain", "odd", "rich"])
@pytest.mark.parametrize("products", [False, True])
def test_every_planned_layer_is_an_integer_kernel(name, products, canonical, models, pixels_for) -> None:
    images = [pixels_for(models[name].config, count=8)]
    made = quantize(canonical[name], images, target="any-cpu", quantize_products=products, single_rows="int8")
    linears, in_int8 = 1 + 2 * 6 + (2 if name == "rich" else 1), 4 if products else 0
    assert len(made.kernels.linears) == linears
    assert len(made.kernels.products) == in_int8
    assert set(made.kernels.linears.values()) | set(made.kernels.products.values()) <= INTEGER_KERNELS
    assert made.kernels.summary() == (
        f"{linears} of {linears} linears and {in_int8} of {in_int8} products in integer kernels"
    )
    assert made.kernels.counts["QGemm"] == linears


def test_a_doctored_bias_is_found(canonical, plan) -> None:
    """A float bias keeps ONNX Runtime from fusing: it runs dequantize, float Gemm, and says nothing."""
    model = write_plan(canonical["plain"], plan)
    (gemm,) = [node for node in by_type(model, "Gemm") if node.name == "blocks.1.mlp.fc1"]
    gemm.replace_input_with(2, add_constant(graph_of(gemm), "doctored", np.zeros(64, np.float32)))
    with pytest.raises(
        FallbackError, match=r"would not run 1 layer of .* blocks\.1\.mlp\.fc1 \((Fused)?Gemm\)"
    ):
        verify_kernels(to_bytes(model), plan)


def test_a_doctored_product_is_found(canonical, plan) -> None:
    model = write_plan(canonical["plain"], plan)
    (mix,) = [node for node in by_type(model, "MatMul") if node.name == "blocks.0.attention.mix"]
    before = mix.inputs[1].producer().inputs[0].producer()  # the value before its Q/DQ pair
    assert before.op_type == "QuantizeLinear"
    mix.replace_input_with(1, before.inputs[0])
    with pytest.raises(FallbackError, match=r"blocks\.0\.attention\.mix \(.*MatMul\)"):
        verify_kernels(to_bytes(model), plan)


def test_a_layer_that_is_gone_is_found(canonical, plan) -> None:
    model = write_plan(canonical["plain"], plan)
    (head,) = [node for node in by_type(model, "Gemm") if node.name == "head"]
    head.name = "tail"
    with pytest.raises(FallbackError, match=r"head \(not found\)"):
        verify_kernels(to_bytes(model), plan)
