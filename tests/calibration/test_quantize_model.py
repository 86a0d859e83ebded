"""Static quantization in one call, on small random models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from calibration.graph.edit import GraphError
from calibration.measure.drift import measure_drift
from calibration.plan import PlanError, QuantizationPlan
from calibration.quantize_model import apply_plan, quantize
from runtime.session import open_session


def logits(model: ir.Model, pixels: np.ndarray, target: str = "any-cpu") -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    session = open_session(data, device="cpu", threads=1, target=target)
    (found,) = session.run(None, {"pixels": pixels})
    return np.asarray(found)


@pytest.mark.parametrize("name", ["plain", "odd", "rich"])
@pytest.mark.parametrize("target", ["any-cpu", "full-range"])
def test_int8_stays_close_on_images_that_calibration_did_not_see(name, target, canonical, images) -> None:
    calibration, others = images(name)
    made = quantize(canonical[name], [calibration], target=target)
    drift = measure_drift(logits(canonical[name], others), logits(made.model, others, target))
    # Noise as images, weights without any structure: real models and images are in tests/drift.
    assert drift.sqnr > 20


@pytest.mark.parametrize("name", ["plain", "odd", "rich"])
def test_any_batch_gives_the_same_logits(name, canonical, images) -> None:
    calibration, others = images(name)
    model = quantize(canonical[name], [calibration], target="any-cpu").model
    five = logits(model, others[:5])
    ones = np.concatenate([logits(model, others[i : i + 1]) for i in range(5)])
    assert five.shape == ones.shape
    np.testing.assert_allclose(five, ones, atol=0.02 * np.abs(five).max())  # float rounding, times one step


def test_the_plan_is_all_that_is_needed(canonical, images) -> None:
    calibration, others = images("plain")
    made = quantize(canonical["plain"], [calibration], target="any-cpu")
    read = QuantizationPlan.from_json(made.plan.to_json())
    assert read == made.plan
    again = apply_plan(canonical["plain"], read)
    np.testing.assert_array_equal(logits(again.model, others), logits(made.model, others))


def test_it_repeats(canonical, images) -> None:
    calibration, _ = images("plain")
    first, second = (
        quantize(canonical["plain"], [calibration], target="any-cpu", threads=1) for _ in range(2)
    )
    assert first.plan.to_json() == second.plan.to_json()


def test_layers_can_stay_in_float(canonical, images) -> None:
    calibration, others = images("plain")
    exact = logits(canonical["plain"], others)
    kept = [f"blocks.0.mlp.fc{i}" for i in (1, 2)]
    all_int8 = quantize(canonical["plain"], [calibration], target="any-cpu")
    some = quantize(canonical["plain"], [calibration], target="any-cpu", keep_float=kept)
    assert set(all_int8.plan.int8_linears()) - set(some.plan.int8_linears()) == set(kept)
    assert not set(kept) & set(some.kernels.linears)
    assert {each.precision for name, each in some.plan.linears.items() if name in kept} == {"float32"}
    before, after = (measure_drift(exact, logits(each.model, others)).sqnr for each in (all_int8, some))
    assert after > before + 0.1  # dB: two of nine layers make no error any more


def test_what_is_to_stay_in_float_must_exist(canonical, images) -> None:
    calibration, _ = images("plain")
    with pytest.raises(
        PlanError, match=r"no layer is called blocks.7.mlp.fc2; the graph has: patch_embedding"
    ):
        quantize(canonical["plain"], [calibration], target="any-cpu", keep_float=["blocks.7.mlp.fc2"])


def test_images_may_come_from_a_generator(canonical, images) -> None:
    calibration, _ = images("plain")

    def feed() -> Iterator[np.ndarray]:
        yield from np.split(calibration, 6)

    streamed = quantize(canonical["plain"], feed(), target="any-cpu", threads=1).plan
    assert streamed == quantize(canonical["plain"], [calibration], target="any-cpu", threads=1).plan


def test_nothing_to_calibrate_with(canonical) -> None:
    with pytest.raises(GraphError, match="at least one calibration image"):
        quantize(canonical["plain"], [], target="any-cpu")


def test_nothing_to_quantize(canonical, raw_graphs, images) -> None:
    calibration, _ = images("plain")
    graph = canonical["plain"].clone()
    for node in graph.graph:
        if node.op_type == "Gemm":
            node.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    with pytest.raises(GraphError, match="expected linear layers"):
        quantize(graph, [calibration], target="any-cpu")


@pytest.mark.parametrize("target", ["any-cpu", "full-range"])
def test_activations_are_uint8_and_weights_int8_for_every_target(target, canonical, images) -> None:
    calibration, _ = images("plain")
    made = quantize(canonical["plain"], [calibration], target=target)
    kinds = {n.outputs[0].dtype for n in made.model.graph if n.op_type == "QuantizeLinear"}
    assert kinds == {ir.DataType.UINT8}
    stored = {v.dtype for name, v in made.model.graph.initializers.items() if name.endswith("weight.int8")}
    assert stored == {ir.DataType.INT8}


def test_a_source_may_use_one_array_for_all_batches(canonical, images) -> None:
    """The first images are kept for the bias corrections: as they were, not as the array is at the end."""
    calibration, _ = images("plain")
    array = np.empty_like(calibration[:4])

    def refill() -> Iterator[np.ndarray]:
        for start in range(0, len(calibration), 4):
            array[:] = calibration[start : start + 4]
            yield array

    made = quantize(canonical["plain"], refill(), target="any-cpu", threads=1)
    again = quantize(canonical["plain"], [calibration], target="any-cpu", threads=1)
    assert made.plan.to_json() == again.plan.to_json()
