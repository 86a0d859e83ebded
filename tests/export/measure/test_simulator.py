"""Files for an NPU in Qualcomm's simulator: which images, how many, and why a file cannot run there.

The simulator is replaced by the CPU here; `make npu` has the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.measure import simulator
from export.measure.inference import ModelFile, Run
from export.options import Options
from export.report import npu_simulation
from export.report.npu_simulation import NpuSimulation
from runtime.devices import DeviceError
from runtime.images.preprocess import Preprocess
from runtime.session import open_session
from vit.data.datasets import Images

SIZE, CLASSES, COUNT = (8, 8), 5, 20


def make_file(variant: Any, noise: float = 0.0, bias: float = 0.0) -> ModelFile:
    """A model of the mean colors of an image; `noise` changes its weights, `bias` is added."""
    random, other = np.random.default_rng(0), np.random.default_rng(1)
    weights = random.normal(size=(3, CLASSES)) + noise * other.normal(size=(3, CLASSES))
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["logits"]),
    ]
    values = [
        numpy_helper.from_array(np.array([1, 2]), "axes"),
        numpy_helper.from_array(weights.astype(np.float32), "weights"),
        numpy_helper.from_array(np.full(CLASSES, bias, np.float32), "bias"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "colors", [pixels], [logits], values)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ModelFile(variant, ir.from_proto(made))


def make_run(*files: ModelFile, **options: Any) -> Run:
    items = np.random.default_rng(2).integers(0, 256, (COUNT, *SIZE, 3), np.uint8)
    images = SimpleNamespace(evaluation=Images(items, None, None, "noise"))
    source: Any = SimpleNamespace(preprocess=Preprocess(size=SIZE), labels=tuple("abcde"))
    logits = {each.variant: each.open(1).run(None, {"pixels": items})[0] for each in files}
    counts = {each.variant: {} for each in files}
    return Run(source, images, Options(**options), files, 0.0, logits, {}, {}, {}, counts, {})  # type: ignore[arg-type]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a simulator: the CPU, at `seconds` per image by the clock; it refuses `broken` at once."""

    def replace_simulator(seconds: float = 0.0, broken: str = "") -> None:
        clock = [0.0]
        run = simulator._answer

        def answer(session: Any, name: str, pixels: Any) -> Any:
            clock[0] += seconds
            return run(session, name, pixels)

        def open_file(file: ModelFile) -> Any:
            if file.variant == broken:
                raise DeviceError("MEM_ALLOC")
            return open_on_cpu(file)

        open_on_cpu = simulator._open
        monkeypatch.setattr(simulator, "open_session", lambda model, **_: open_session(model, device="cpu"))
        monkeypatch.setattr(simulator, "_open", open_file)
        monkeypatch.setattr(simulator, "_answer", answer)
        monkeypatch.setattr(simulator, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        monkeypatch.setattr(npu_simulation, "find_obstacle", lambda: None)

    return replace_simulator


def test_each_file_answers_the_same_images_and_is_compared_on_them(pretend: Callable[..., None]) -> None:
    pretend()
    exact, half = make_file("float32"), make_file("float16", noise=0.01)
    run = make_run(exact, half, npu_minutes=1)
    found = simulator.simulate(run, [exact, half], 1)
    assert sorted(found.images) == list(range(COUNT))
    assert found.images != tuple(range(COUNT))  # any first part is a sample
    for each in (exact, half):
        expected = run.logits[each.variant][list(found.images)]
        np.testing.assert_allclose(found.outputs[each.variant], expected, rtol=1e-5)
    section = NpuSimulation.measure(run)
    assert section is not None
    drift = section.files["float16"]
    assert drift.sqnr == pytest.approx(drift.cpu_sqnr, abs=0.01)
    assert 20 < drift.sqnr < 60
    assert drift.between_sqnr > 100
    wrong = int((run.logits["float32"].argmax(1) != run.logits["float16"].argmax(1)).sum())
    assert drift.same_label == COUNT - wrong


@pytest.mark.parametrize(("seconds", "images"), [(1.0, COUNT), (7.0, 8), (100.0, 1)])
def test_it_stops_before_the_image_that_would_exceed_the_budget(
    pretend: Callable[..., None], seconds: float, images: int
) -> None:
    pretend(seconds)
    half = make_file("float16")
    found = simulator.simulate(make_run(make_file("float32"), half), [half], 1)
    assert len(found.images) == images
    assert found.seconds == seconds * images


def test_a_file_that_cannot_run_there_is_named_and_the_others_are_measured(
    pretend: Callable[..., None],
) -> None:
    pretend(broken="float32")
    exact, endless = make_file("float32"), make_file("float16", bias=np.inf)
    found = simulator.simulate(make_run(exact, endless), [exact, endless], 1)
    assert found.failures["float32"] == "MEM_ALLOC"
    assert found.failures["float16"].startswith("float16: expected numbers, found NaN or infinity")
    assert found.outputs == {} == found.placement


def test_what_is_measured_depends_on_the_files_and_the_minutes(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    exact, half = make_file("float32"), make_file("float16")
    assert NpuSimulation.measure(make_run(exact, half)) is None  # nobody asked for it
    assert NpuSimulation.measure(make_run(exact, npu_minutes=1)) is None  # no file for an NPU
    found = NpuSimulation.measure(make_run(exact, half, npu_minutes=1))
    assert found is not None
    assert list(found.files) == ["float16"]
    monkeypatch.setattr(npu_simulation, "find_obstacle", lambda: "no qnn here")
    without = NpuSimulation.measure(make_run(exact, half, npu_minutes=1))
    assert without == NpuSimulation(obstacle="no qnn here")


def test_an_npu_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "is_simulated", lambda _: True)
    assert simulator.find_obstacle() is None
    monkeypatch.setattr(simulator, "is_simulated", lambda _: False)
    assert "vit-edge check --device qnn" in str(simulator.find_obstacle())

    def refuse(_: object) -> None:
        raise DeviceError("not installed")

    monkeypatch.setattr(simulator, "is_simulated", refuse)
    assert simulator.find_obstacle() == "not installed"
