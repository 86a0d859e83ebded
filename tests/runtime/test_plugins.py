"""Plugins of ONNX Runtime: a fake one everywhere, and the real ones where they are installed."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtime import ArtifactError, Classifier, Device, DeviceError, DeviceOptions, available_devices
from runtime import plugins as plugins_module
from runtime.devices import CHIPS, DEVICES
from runtime.onnx_runtime import onnxruntime
from runtime.plugins import find_plugin_device, provider_options
from runtime.session import open_session

MakeModel = Callable[..., Path]
PLUGINS = [name for name, spec in DEVICES.items() if spec.module]
BLACK = np.zeros((8, 8, 3), np.uint8)


class FakePlugin:
    """ONNX Runtime with a plugin that runs on the CPU and says that it does not."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.lists, self.registered = spec, list(spec.hardware[:1]), []  # type: ignore[var-annotated]
        self.given: list[dict[str, str]] = []
        self.sources: list[object] = []
        self.version = "1.0"
        self.create = onnxruntime.InferenceSession

    def register(self, *given: str) -> None:
        time.sleep(0.05)  # as loading a library takes time
        self.registered.append(given)

    def list_providers(self) -> list[str]:
        """Registered plugins are available, too."""
        return ["CPUExecutionProvider", *(name for name, _ in self.registered)]

    def list_hardware(self) -> list[Any]:
        about = {"library_path": "a path", "version": self.version}
        found = [
            SimpleNamespace(
                ep_name=self.spec.provider,
                ep_metadata=about,
                device=SimpleNamespace(
                    type=SimpleNamespace(name=kind.upper()), metadata={}, vendor_id=1, device_id=2
                ),
            )
            for kind in self.lists
        ]
        cpu = SimpleNamespace(ep_name="CPUExecutionProvider", ep_metadata={})
        return [cpu, *found] if self.registered else [cpu]

    def open(self, source: object, options: Any, **others: Any) -> Any:
        if "providers" in others:
            return self.create(source, options, **others)
        self.sources.append(source)
        path = options.get_session_config_entry("ep.context_file_path") if self.wants_context(options) else ""
        session = self.create(source, options, providers=["CPUExecutionProvider"], **others)
        session.get_providers = lambda: [self.spec.provider, "CPUExecutionProvider"]
        if path:
            Path(path).write_bytes(Path(str(source)).read_bytes())
        return session

    def wants_context(self, options: Any) -> bool:
        try:
            return bool(options.get_session_config_entry("ep.context_enable") == "1")
        except RuntimeError:  # it has no such entry
            return False


@pytest.fixture
def make_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], FakePlugin]]:
    """Make a package with a plugin, and an ONNX Runtime that can open it."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(plugins_module, "_registered", set())
    monkeypatch.setattr(plugins_module, "_opened_in", {})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    made = []

    def make(device: str) -> FakePlugin:
        spec = DEVICES[device]
        plugins_module._registered.clear()
        code = f"def {spec.library}(): return 'plugin.so'\ndef get_qnn_htp_path(): return 'htp.so'\n"
        (folder / f"{spec.module}.py").write_text(code)
        sys.modules.pop(str(spec.module), None)
        made.append(str(spec.module))
        fake = FakePlugin(spec)
        monkeypatch.setattr(
            onnxruntime,
            "register_execution_provider_library",
            fake.register,
            raising=False,
        )
        monkeypatch.setattr(onnxruntime, "get_available_providers", fake.list_providers)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", fake.list_hardware, raising=False)
        monkeypatch.setattr(
            onnxruntime.SessionOptions,
            "add_provider_for_devices",
            lambda self, devices, given: fake.given.append(given),
            raising=False,
        )
        monkeypatch.setattr(onnxruntime, "InferenceSession", fake.open)
        return fake

    yield make
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("device", PLUGINS)
def test_a_model_runs_on_every_plugin(
    device: Any, make_plugin: Callable[[str], FakePlugin], model: Path
) -> None:
    fake, spec = make_plugin(device), DEVICES[device]
    classify = Classifier(model, device=device)
    assert classify.info.device == device
    assert classify(BLACK).label == "red"
    assert fake.registered == [(spec.provider, "plugin.so")]
    assert len(fake.given) == 1
    shape = classify._take()[1].get_inputs()[0].shape
    assert (shape[0] == 1) == spec.fixed_batch


@pytest.mark.parametrize("device", PLUGINS)
def test_without_the_package_the_error_is_the_line_to_type(
    device: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins_module, "_registered", set())
    monkeypatch.setattr(plugins_module, "_list_hardware", lambda spec: [])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(plugins_module, "find_spec", lambda name: None)
    with pytest.raises(DeviceError) as refused:
        open_session(model, device=device)
    package = DEVICES[device].package
    assert str(refused.value) == (
        f"no {device} here: the package {package} is not installed; install it: pip install {package}"
    )


def test_an_old_onnx_runtime_is_told_from_an_absent_package(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plugin("webgpu")
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    monkeypatch.delattr(onnxruntime, "get_ep_devices")
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="webgpu")
    assert str(refused.value) == (
        "webgpu needs ONNX Runtime 1.24 or newer, found 1.23.2: "
        "pip install --upgrade onnxruntime onnxruntime-ep-webgpu"
    )


@pytest.mark.parametrize(("lists", "words"), [([], "nothing"), (["cpu", "gpu"], "cpu, gpu")])
def test_a_plugin_without_its_hardware_is_an_error_and_never_the_cpu(
    lists: list[str], words: str, make_plugin: Callable[[str], FakePlugin], model: Path
) -> None:
    make_plugin("openvino:npu").lists = lists
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="openvino:npu")
    assert str(refused.value) == (
        f"no openvino:npu on this machine: the plugin onnxruntime-ep-openvino lists {words}, expected npu; "
        "OpenVINO's plugin serves hardware of Intel alone; for other CPUs: pip uninstall onnxruntime && "
        "pip install onnxruntime-openvino"
    )


def test_a_plugin_that_does_not_load_is_an_error(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("openvino")

    def register(*_: str) -> None:
        raise RuntimeError("libtbb.so.12:\n cannot open")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    for _ in range(2):  # it is tried again
        with pytest.raises(DeviceError) as refused:
            open_session(model, device="openvino")
        assert str(refused.value) == (
            "the plugin onnxruntime-ep-openvino of openvino does not load (RuntimeError: libtbb.so.12: "
            "cannot open); install it again: pip install --upgrade --force-reinstall onnxruntime "
            "onnxruntime-ep-openvino"
        )
    assert not fake.sources


def test_a_session_that_went_to_the_cpu_is_an_error(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("openvino")
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, **_: fake.create(source, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(DeviceError, match="openvino was asked for and ONNX Runtime fell back to cpu"):
        open_session(model, device="openvino")


def test_a_plugin_is_registered_once_per_process(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("webgpu")
    together = threading.Barrier(8)

    def open_one(_: int) -> str:
        together.wait()
        return Classifier(model, device="webgpu")(BLACK).label or ""

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(open_one, range(8))) == {"red"}
    assert len(fake.registered) == 1
    monkeypatch.setattr(plugins_module, "_registered", set())  # the app has registered it
    open_session(model, device="webgpu")
    assert len(fake.registered) == 1


def test_what_is_built_in_is_preferred(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("openvino")
    provider = DEVICES["openvino"].provider
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    found = []

    def create(source: object, options: Any, providers: list[Any], **others: Any) -> Any:
        found.append(providers)
        session = fake.create(source, options, providers=providers[-1:], **others)
        session.get_providers = lambda: [provider]
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    monkeypatch.setattr("runtime.session.available_cores", lambda: 4)
    open_session(model, device="openvino", threads=2)
    open_session(model, device="openvino:gpu", threads=2, options=DeviceOptions(precision="fast"))
    exact = {"device_type": "CPU", "num_of_threads": "2", "num_streams": "2", "precision": "FP32"}
    assert found == [
        [(provider, exact), "CPUExecutionProvider"],
        [(provider, {"device_type": "GPU"}), "CPUExecutionProvider"],
    ]
    assert not fake.registered


def test_available_devices_are_those_that_can_be_opened(
    make_plugin: Callable[[str], FakePlugin],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "runtime")
    fake = make_plugin("openvino")
    monkeypatch.setattr(plugins_module, "find_spec", lambda name: "openvino" in name or None)
    fake.lists = ["cpu", "gpu"]
    assert available_devices() == ("cpu", "openvino", "openvino:gpu")
    assert "no openvino:npu on this machine" in caplog.text
    assert "no qnn here: the package onnxruntime-qnn is not installed" in caplog.text
    fake.lists = []
    assert available_devices() == ("cpu",)


# --- Options of the providers ---


def choose(device: str, kind: str = "cpu", *, threads: int = 1, **given: Any) -> dict[str, str]:
    folder = given.pop("folder", None)
    plugin = SimpleNamespace(device=SimpleNamespace(type=SimpleNamespace(name=kind.upper())))
    return provider_options(
        DEVICES[device], plugin, threads=threads, cores=4, given=DeviceOptions(**given), folder=folder
    )


def test_openvino_computes_in_float32_unless_it_may_be_fast() -> None:
    """Its default is bfloat16 where the CPU has it: 44.3 dB on a real ViT-B, 119.7 dB with the hint."""
    streams = {"NUM_STREAMS": "4", "INFERENCE_NUM_THREADS": "4", "ENABLE_CPU_PINNING": "NO"}
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    assert json.loads(choose("openvino")["load_config"]) == {"CPU": streams | exact}
    assert json.loads(choose("openvino", precision="fast")["load_config"]) == {"CPU": streams}
    three = json.loads(choose("openvino", threads=3)["load_config"])["CPU"]
    assert (three["NUM_STREAMS"], three["INFERENCE_NUM_THREADS"]) == ("1", "3")
    assert choose("openvino:gpu", "gpu") == {}
    cached = json.loads(choose("openvino:npu", "npu", folder=Path("c"))["load_config"])
    assert cached == {"NPU": {"CACHE_DIR": "c"}}


def test_the_simulator_is_told_its_npu_and_an_npu_is_not(
    make_plugin: Callable[[str], FakePlugin],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_plugin("qnn")
    plugins_module._warn_of_simulator.cache_clear()
    monkeypatch.setattr(plugins_module, "is_x86", lambda: True)
    backend = {"backend_path": "htp.so", "offload_graph_io_quantization": "0"}
    for _ in range(2):
        assert choose("qnn") == backend | {"htp_arch": "75", "soc_model": "57"}
    assert [record.getMessage() for record in caplog.records] == [
        "qnn: no NPU here; Qualcomm's simulator of chip snapdragon-8-gen-3 computes, whose times mean nothing"
    ]
    assert choose("qnn", chip="snapdragon-8-gen-2") == backend | {"htp_arch": "73", "soc_model": "43"}
    assert choose("qnn", chip=77) == backend | {"soc_model": "77"}
    assert choose("qnn", "npu") == backend
    chosen = {"htp_performance_mode": "burst", "htp_graph_finalization_optimization_mode": "3"}
    assert choose("qnn", "npu", performance="burst", finalization=3) == backend | chosen
    with pytest.raises(DeviceError, match="leave chip='snapdragon-8-gen-3' out"):
        choose("qnn", "npu", chip=next(iter(CHIPS)))
    monkeypatch.setattr(plugins_module, "is_x86", lambda: False)
    with pytest.raises(DeviceError, match=r"no qnn on this machine: .* lists no NPU"):
        choose("qnn")


def test_folders_of_caches_are_passed_on() -> None:
    assert choose("tensorrt-rtx", "gpu", folder=Path("c")) == {"nv_runtime_cache_path": "c"}
    assert choose("tensorrt-rtx", "gpu") == {}


# --- Loaded models ---


def test_a_device_with_static_shapes_runs_one_image_at_a_time(
    make_plugin: Callable[[str], FakePlugin], model: Path
) -> None:
    make_plugin("openvino:npu")
    classify = Classifier(model, device="openvino:npu")
    labels = [result.prediction.label for result in classify.stream([BLACK] * 5) if result.prediction]
    assert labels == ["red"] * 5
    with pytest.raises(
        ValueError, match="openvino:npu runs one image at a time, found batch=2; leave it out"
    ):
        classify.stream([BLACK], batch=2)


def test_a_batch_that_a_device_did_not_ask_for_is_refused(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("webgpu")

    def create(source: object, options: Any, **others: Any) -> Any:
        options.add_free_dimension_override_by_name("batch", 1)
        return fake.open(source, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    with pytest.raises(ArtifactError, match="the batch of its input pixels is fixed to 1"):
        Classifier(model, device="webgpu")


def test_a_folder_gives_each_device_the_variant_that_suits_it(
    make_plugin: Callable[[str], FakePlugin], make_model: MakeModel
) -> None:
    folder = make_model("model.onnx").parent
    make_model("model.int8.onnx", variant="int8")
    make_model("model.fp16.onnx", variant="float16")
    for device, variant in (("openvino", "int8"), ("openvino:gpu", "float16"), ("qnn", "float16")):
        make_plugin(device)
        assert Classifier(folder, device=device).info.variant == variant


def test_copies_and_streams_keep_the_device_and_its_options(
    make_plugin: Callable[[str], FakePlugin], model: Path
) -> None:
    fake = make_plugin("openvino")
    classify = Classifier(
        model, device="openvino", threads=2, device_options=DeviceOptions(precision="fast", partial=True)
    )
    copy = pickle.loads(pickle.dumps(classify))
    assert copy.info == classify.info
    assert copy._device_options == classify._device_options
    assert [result.prediction.label for result in copy.stream([BLACK])] == ["red"]
    configs = [json.loads(given["load_config"])["CPU"] for given in fake.given]
    assert [int(each["INFERENCE_NUM_THREADS"]) // int(each["NUM_STREAMS"]) for each in configs] == [2, 2, 1]
    assert all("INFERENCE_PRECISION_HINT" not in each for each in configs)
    classify.close()
    with pytest.raises(RuntimeError, match="closed"):
        classify(BLACK)
    assert copy(BLACK).label == "red"


def test_a_fork_of_a_process_that_opened_a_plugin_is_refused(
    make_plugin: Callable[[str], FakePlugin], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_plugin("openvino")
    find_plugin_device(DEVICES["openvino"])  # registered alone, which a fork inherits
    parent = os.getpid()
    monkeypatch.setattr(plugins_module.os, "getpid", lambda: parent + 1)
    open_session(model, device="openvino")
    assert len(fake.registered) == 1
    monkeypatch.setattr(plugins_module.os, "getpid", lambda: parent + 2)
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="openvino")
    assert str(refused.value) == (
        "openvino was opened before this process was forked, and its threads are not in a fork; open the "
        'model after the fork, or start processes with multiprocessing.get_context("spawn")'
    )


# --- The real ones ---

REAL = """
import os, pickle, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from runtime import Classifier, DeviceOptions

device, model, cache = sys.argv[1:]
classify = Classifier(model, device=device, device_options=DeviceOptions(cache=cache))
images = [np.full((40, 30, 3), np.roll((250, 90, 10), i), np.uint8) for i in range(8)]
expected = [Classifier(model, device="cpu")(each).label for each in images]
assert classify.info.device == device
assert [classify(each).label for each in images] == expected
assert [result.prediction.label for result in classify.stream(images)] == expected
with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda image: classify(image).label, images)) == expected
with pickle.loads(pickle.dumps(classify)) as copy:  # two sessions
    assert [copy(each).label for each in images] == expected
assert classify(images[0]).label == expected[0]
sys.stdout.flush()
if (child := os.fork()) == 0:
    try:
        classify(images[0])
    except Exception as error:
        print(error)
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
classify.close()
print("closed")
"""


@pytest.mark.parametrize("device", ["openvino", "qnn"])
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_real_plugin_runs_in_threads_copies_and_forks(
    device: Device, make_model: MakeModel, tmp_path: Path
) -> None:
    """And its second start comes from the cache."""
    if find_spec(str(DEVICES[device].module)) is None:
        pytest.skip(f"{DEVICES[device].package} is not installed")
    try:
        find_plugin_device(DEVICES[device])
    except DeviceError as error:
        pytest.skip(str(error))
    model = make_model()
    proto = onnx.load(model)  # QNN's cast of uint8 gives 0 and 1
    zero = numpy_helper.from_array(np.uint8(0), "zero")
    proto.graph.initializer.extend([numpy_helper.from_array(np.float32(1), "one"), zero])
    inputs, outputs = ["pixels", "one", "zero"], ["float"]
    proto.graph.node[0].CopyFrom(helper.make_node("DequantizeLinear", inputs, outputs))
    onnx.save(proto, model)
    arguments = [device, model, tmp_path / "cache"]
    kept = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", REAL, *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "closed"
        assert f"{device} was opened before this process was forked" in done.stdout
        files = [each for each in (tmp_path / "cache").rglob("*") if each.is_file()]
        kept.append({each: each.stat().st_mtime_ns for each in files})
    assert kept[0] == kept[1] != {}
