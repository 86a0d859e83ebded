"""Drift layer by layer: one figure per linear, with one session at a time."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx_ir as ir

from calibration import observe
from calibration.graph.layers import find_layers
from calibration.measure import per_layer
from calibration.measure.per_layer import measure_layer_drift
from calibration.observe import open_observing_session
from calibration.plan import QuantizationPlan
from calibration.quantize_model import quantize
from runtime.onnx_runtime import onnxruntime as ort


def test_drift_layer_by_layer(canonical, images) -> None:
    calibration, others = images("plain")
    made = quantize(canonical["plain"], [calibration], target="any-cpu", keep_float=["patch_embedding"])
    found = measure_layer_drift(canonical["plain"], made.model, made.plan, np.split(others, 4))
    assert list(found) == list(made.plan.linears)
    assert found["patch_embedding"] > 100  # nothing before it and nothing in it is quantized
    assert all(5 < decibels < 60 for name, decibels in found.items() if name != "patch_embedding")


def test_layer_drift_holds_one_session_and_the_images_in_rounds(canonical, images, monkeypatch) -> None:
    calibration, others = images("plain")
    made = quantize(canonical["plain"], [calibration], target="any-cpu")
    at_once = measure_layer_drift(canonical["plain"], made.model, made.plan, [others[:5]], threads=1)
    opened: list[weakref.ref[ort.InferenceSession]] = []
    alive: list[int] = []

    def counting(*arguments: Any, **options: Any) -> ort.InferenceSession:
        alive.append(sum(each() is not None for each in opened))
        session = open_observing_session(*arguments, **options)
        opened.append(weakref.ref(session))
        return session

    for module in (observe, per_layer):
        monkeypatch.setattr(module, "open_observing_session", counting)
    one = sum(tensor.nbytes for tensor in outputs_of(canonical["plain"], made.plan, others[:1]))
    monkeypatch.setattr(per_layer, "MOST_WAITING", one * 3 // 2)  # full after two images
    assert measure_layer_drift(canonical["plain"], made.model, made.plan, [others[:5]], threads=1) == at_once
    assert len(opened) == 2 * 3
    assert set(alive) == {0}


def outputs_of(model: ir.Model, plan: QuantizationPlan, image: np.ndarray) -> list[np.ndarray]:
    names = [str(find_layers(model).linears[name].node.outputs[0].name) for name in plan.linears]
    session = open_observing_session(model, names, threads=1)
    return list(session.run(names, {"pixels": image}))
