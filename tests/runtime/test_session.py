"""Devices: the one asked for or an error, never another in silence."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from runtime import ArtifactError, Classifier, Device, DeviceError, available_devices
from runtime import cpu as cpu_module
from runtime import plugins as plugins_module
from runtime import session as session_module
from runtime.devices import DEVICES
from runtime.onnx_runtime import onnxruntime
from runtime.session import device_of, devices_for, open_session, waiting_options

MakeModel = Callable[..., Path]
ALL = ["CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"]


def test_the_cpu_is_there(model: Path) -> None:
    assert "cpu" in available_devices()
    assert device_of(open_session(model, device="cpu")) == "cpu"
    assert device_of(open_session(model.read_bytes())) == "cpu"


@pytest.mark.parametrize("device", [device for device in get_args(Device) if device not in ("auto", "cpu")])
def test_a_device_that_is_absent_is_an_error_with_the_line_that_installs_it(model: Path, device: str) -> None:
    if device in available_devices():
        pytest.skip(f"this ONNX Runtime has {device}")
    with pytest.raises(DeviceError, match=f"no {device}.*pip install"):
        Classifier(model, device=device)  # type: ignore[arg-type]


def test_an_unknown_device_is_wrong_use(model: Path) -> None:
    with pytest.raises(ValueError, match="auto, cpu"):
        open_session(model, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads"):
        open_session(model, threads=0)


def test_a_provider_that_falls_back_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built for CUDA, on a machine without: it says so, and then runs on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers, **_: create(*args, providers=providers[-1:])
    )
    with pytest.raises(DeviceError, match="fell back to cpu"):
        open_session(model, device="cuda")


def test_auto_takes_the_cpu_when_cuda_does_not_work_and_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers, **_: create(*args, providers=providers[-1:])
    )
    assert devices_for("auto") == ("cuda", "cpu")
    assert Classifier(model).info.device == "cpu"
    assert "not on cuda" in caplog.text


def test_a_folder_gives_float16_to_cuda_and_int8_to_the_cpu(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("model.onnx").parent
    make_model("model.int8.onnx", variant="int8")
    make_model("model.fp16.onnx", variant="float16")
    assert Classifier(folder).info.variant == "int8"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    create = onnxruntime.InferenceSession

    def create_on_the_cpu(*args: object, providers: list[str], **_: object) -> onnxruntime.InferenceSession:
        session = create(*args, providers=providers[-1:])
        session.get_providers = lambda: providers
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", create_on_the_cpu)
    assert Classifier(folder, device="cuda").info.variant == "float16"


def test_an_int8_file_stays_on_the_cpu_when_the_device_is_left_to_us(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    assert Classifier(make_model(variant="int8")).info.device == "cpu"
    assert caplog.text == ""


def test_what_onnx_runtime_refuses_is_an_artifact_error(model: Path) -> None:
    with pytest.raises(ArtifactError, match="does not accept it"):
        open_session(model.read_bytes()[:-20])


def test_cpu_flags_and_quotas() -> None:
    assert cpu_module._linux_flags("processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n") == [
        "fpu",
        "avx2",
        "avx512_vnni",
    ]
    assert cpu_module._linux_flags("") == []
    assert cpu_module._quota("200000 100000\n") == 2
    assert cpu_module._quota("50000 100000\n") == 1
    assert cpu_module._quota("max 100000\n") is None
    assert cpu_module._quota("") is None
    assert cpu_module.available_cores() >= 1


@pytest.mark.parametrize(
    ("group", "quotas", "cores"),
    [
        ("", {}, 8),
        ("0::/\n", {"": "200000 100000\n"}, 2),
        ("0::/system.slice/kiosk.service\n", {"system.slice/kiosk.service": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b": "max 100000\n", "a": "300000 100000\n", "": "400000 100000\n"}, 3),
        ("1:cpu:/x\n0::/a\n", {"a": "500000 100000\n"}, 5),
        ("1:cpu:/x\n", {"": "900000 100000\n"}, 8),
    ],
)
def test_the_smallest_quota_around_a_process_counts(
    group: str, quotas: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service of systemd has its own group below that of the machine."""
    files = {f"/sys/fs/cgroup/{name}/cpu.max".replace("//", "/"): text for name, text in quotas.items()}
    files["/proc/self/cgroup"] = group
    monkeypatch.setattr(cpu_module, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(cpu_module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cpu_module.available_cores() == cores


def test_an_open_session_does_not_burn_the_cpu(model: Path) -> None:
    session = open_session(model, threads=2)
    session.run(None, {"pixels": np.zeros((1, 32, 32, 3), np.uint8)})
    options = session.get_session_options()
    for entry, value in waiting_options(onnxruntime.__version__).items():
        assert options.get_session_config_entry(entry) == value
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is asked for it")
def test_what_loading_leaves_behind_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "wide.onnx"
    path.write_bytes(wide_graph(width=1024, layers=10))
    script = (
        "import sys, runtime.session as session\n"
        "if sys.argv[2] == 'kept': session.trim_memory = lambda: None\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4 // 1024\n"
        "before = resident()\n"
        "opened = session.open_session(sys.argv[1], threads=1)\n"
        "print(resident() - before)"
    )
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", script, path, way], capture_output=True, check=True).stdout)
        for way in ("given back", "kept")
    )
    print(f"\n{given_back} MiB resident, {kept} MiB without")
    assert given_back < kept - 6


def wide_graph(width: int, layers: int) -> bytes:
    """float [N, width] through square matrices, which ONNX Runtime lays out anew when it loads them."""
    names = ["x", *(f"x{layer}" for layer in range(layers))]
    shape = ["batch", width]
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)],
        "wide",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(rng.random((width, width), np.float32), f"w{i}") for i in range(layers)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def test_without_onnx_runtime_the_error_is_the_line_to_type() -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import runtime.images.preprocess\n"  # which needs none
        "try:\n    from runtime import Classifier\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install onnxruntime" in done.stdout


def test_the_runtime_brings_no_heavy_package_along(model: Path) -> None:
    script = (
        "import sys, numpy as np\nfrom runtime import *\n"
        f"Classifier({str(model)!r})(np.zeros((9, 9, 3), np.uint8))\n"
        "heavy = 'torch onnx onnxscript scipy sklearn safetensors vit export calibration'\n"
        "print(sorted(set(heavy.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("version", "spins"), [("1.22.0", False), ("1.25.1", False), ("1.26.0", True), ("2.0.0rc1", True)]
)
def test_threads_spin_only_where_the_time_can_be_limited(version: str, spins: bool) -> None:
    options = waiting_options(version)
    assert options["session.intra_op.allow_spinning"] == ("1" if spins else "0")
    assert ("session.intra_op.spin_duration_us" in options) == spins
    assert ("session.force_spinning_stop" in options) == spins


class EPFail(Exception):
    """As ONNX Runtime's own, which has no importable name: they are told by their name alone."""


@pytest.mark.parametrize(("device", "loads"), [("cuda", True), ("tensorrt", True), ("cpu", False)])
def test_the_cuda_libraries_of_pip_are_loaded_first_and_keep_standard_output_free(
    device: str, loads: bool, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so"), raising=False
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers, **_: create(*args, providers=providers[-1:])
    )
    with contextlib.suppress(DeviceError):  # it falls back here, which is not what is tested
        open_session(model, device=device)  # type: ignore[arg-type]
    said = capfd.readouterr()
    assert said.out == ""
    assert ("Failed to load libcublas.so" in said.err) is loads


class RuntimeException(Exception):
    """The other one."""


@pytest.mark.parametrize("source", [b"bytes", "/models/vit.onnx"])
@pytest.mark.parametrize("kind", [EPFail, RuntimeException])
def test_what_a_device_cannot_run_is_told_from_what_no_device_can(
    kind: type[Exception], source: bytes | str
) -> None:
    name = "the model" if isinstance(source, bytes) else source
    said = kind("[ONNXRuntimeError] :\n 1 :   FAIL")
    refused = f"{name}: ONNX Runtime does not accept it ([ONNXRuntimeError] : 1 : FAIL); export it again"
    for error, device, expected, words in (
        (said, "cuda", DeviceError, f"cuda cannot run {name}: [ONNXRuntimeError] : 1 : FAIL"),
        (said, "cpu", ArtifactError, refused),
        (ValueError(str(said)), "cuda", ArtifactError, refused),
        (RuntimeError("no driver"), "cuda", DeviceError, f"cuda cannot run {name}: no driver"),
        (
            kind("Failed to allocate"),
            "cpu",
            DeviceError,
            f"cpu has too little memory for {name}: Failed to allocate",
        ),
    ):
        found = session_module.translate_error(error, device, source, "does not accept")
        assert type(found) is expected
        assert str(found) == words


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cpu", ["CPU"]),
        ("cuda", ["CUDA", "CPU"]),
        ("tensorrt", ["Tensorrt", "CUDA", "CPU"]),
        ("openvino", ["OpenVINO", "CPU"]),
        ("coreml", ["CoreML", "CPU"]),
        ("directml", ["Dml", "CPU"]),
    ],
)
def test_what_a_device_leaves_goes_to_the_next_best(device: str, providers: list[str]) -> None:
    found = session_module._providers_of(DEVICES[device], {})
    assert found == [f"{name}ExecutionProvider" for name in providers]
    if device != "cpu":
        found = session_module._providers_of(DEVICES[device], {"a": "b"})
        assert found[0] == (f"{providers[0]}ExecutionProvider", {"a": "b"})


def test_words_of_wrong_use(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in (
        (
            {"device": "gpu"},
            "device must be one of auto, cpu, openvino, openvino:gpu, openvino:npu, qnn, webgpu, "
            "tensorrt-rtx, mlx, cuda, tensorrt, coreml, directml, found 'gpu'",
        ),
        ({"threads": 0}, "threads must be 1 or more, found 0"),
        ({"threads": -1}, "threads must be 1 or more, found -1"),
    ):
        with pytest.raises(ValueError, match="must be") as caught:
            open_session(model, **arguments)
        assert str(caught.value) == words
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="coreml")
    assert str(refused.value) == (
        "no coreml in this ONNX Runtime (it has: cpu); install it: pip install onnxruntime on macOS"
    )


def test_as_many_threads_as_asked_for_or_as_there_are_cores(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "available_cores", lambda: 3)
    for asked, expected in ((1, 1), (2, 2), (None, 3)):
        options = open_session(model, device="cpu", threads=asked).get_session_options()
        assert options.intra_op_num_threads == expected
        assert options.inter_op_num_threads == 1
        assert options.log_severity_level == 3


def test_a_session_of_bytes_does_not_keep_them_and_never_falls_back(model: Path) -> None:
    for source in (model, str(model), model.read_bytes()):
        session = open_session(source, device="cpu", threads=1)
        assert session._model_bytes is None
        assert not session._enable_fallback


def test_the_devices_that_were_built_in_and_the_one_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*ALL, "AzureExecutionProvider"])
    # No plugin, whatever is installed and registered here.
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list, raising=False)
    monkeypatch.setattr(plugins_module, "find_spec", lambda _: None)
    monkeypatch.setattr(plugins_module, "_registered", set())
    assert available_devices() == ("cpu", "cuda", "tensorrt")

    class Session:
        def __init__(self, *providers: str) -> None:
            self.providers = list(providers)

        def get_providers(self) -> list[str]:
            return self.providers

    assert device_of(Session("CUDAExecutionProvider", "CPUExecutionProvider")) == "cuda"
    assert device_of(Session("AzureExecutionProvider", "CPUExecutionProvider")) == "AzureExecutionProvider"
    assert devices_for("tensorrt") == ("tensorrt",)
    assert devices_for("auto") == ("cuda", "cpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert devices_for("auto") == ("cpu",)


def test_the_first_device_that_works_is_taken_and_the_last_one_says_why_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def opening(*working: str) -> Callable[[str], str]:
        def open_on(device: str) -> str:
            if device not in working:
                raise DeviceError(f"no {device} here")
            return f"on {device}"

        return open_on

    assert session_module.open_first_device(("cuda", "cpu"), opening("cuda", "cpu")) == "on cuda"
    assert not caplog.records
    assert session_module.open_first_device(("cuda", "cpu"), opening("cpu")) == "on cpu"
    assert [record.getMessage() for record in caplog.records] == ["not on cuda: no cuda here"]
    with pytest.raises(DeviceError, match=r"^no cpu here$"):
        session_module.open_first_device(("cuda", "cpu"), opening())


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Library:
        """musl's, which has no malloc_trim, unless it is given one."""

    def library(name: object) -> Library:
        calls.append(name)
        return found

    found = Library()
    monkeypatch.setattr(session_module.ctypes, "CDLL", library)
    monkeypatch.setattr(session_module.sys, "platform", "linux")
    session_module.trim_memory()
    assert calls == [None]  # the library that this process runs with
    found.malloc_trim = lambda most: calls.append((type(most), most.value))  # type: ignore[attr-defined]
    session_module.trim_memory()
    assert calls == [None, None, (session_module.ctypes.c_size_t, 0)]
    monkeypatch.setattr(session_module.sys, "platform", "darwin")
    session_module.trim_memory()
    assert len(calls) == 3


def test_a_package_for_a_gpu_takes_the_place_of_the_other_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both packages have the same files."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device, packages in (
        ("cuda", "onnxruntime-gpu"),
        ("tensorrt", "onnxruntime-gpu tensorrt"),
    ):
        with pytest.raises(DeviceError) as refused:
            open_session(model, device=device)  # type: ignore[arg-type]
        install = f"pip uninstall onnxruntime && pip install {packages}"
        assert str(refused.value) == (
            f"no {device} in this ONNX Runtime (it has: cpu); install it: {install}"
        )


def test_a_single_device_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def open_on(device: str) -> None:
        tried.append(device)
        raise DeviceError(f"no {device} here")

    with pytest.raises(DeviceError, match=r"^no cpu here$"):
        session_module.open_first_device(("cpu",), open_on)
    assert tried == ["cpu"]
    assert not caplog.records


def test_an_onnx_runtime_that_loads_no_libraries_opens_models_too(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`preload_dlls` came with 1.21."""
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers, **_: create(*args, providers=providers[-1:])
    )
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="cuda")
    assert str(refused.value) == (
        "cuda was asked for and ONNX Runtime fell back to cpu: is there such a device, and its driver? "
        "(pip uninstall onnxruntime && pip install onnxruntime-gpu)"
    )


@pytest.mark.parametrize(
    "text", ["bad allocation", "std::bad_alloc", "Failed to allocate memory for 9 bytes"]
)
def test_too_little_memory_is_no_fault_of_the_model(
    text: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="cpu")
    assert str(refused.value) == f"cpu has too little memory for {model}: {text}"


def test_threads_spin_for_20_microseconds_and_not_between_predictions() -> None:
    assert waiting_options("1.26.0") == {
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": "20",
        "session.force_spinning_stop": "1",
    }
    assert waiting_options("1.25.9") == {"session.intra_op.allow_spinning": "0"}


def test_openvino_is_refused_where_it_overflows(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "cpu_kind", lambda: "x86")
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="openvino", target="full-range")
    assert str(refused.value) == (
        "OpenVINO overflows with full-range INT8 weights on an x86 CPU without VNNI and has no exact "
        'kernels; use device="cpu", or make the file with python -m export --target any-cpu'
    )


def test_the_device_left_to_us_gets_the_options_as_well(model: Path) -> None:
    assert open_session(model, threads=1).get_session_options().intra_op_num_threads == 1


def test_all_devices_that_are_there_are_listed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="directml")
    assert str(refused.value) == (
        "no directml in this ONNX Runtime (it has: cpu, cuda, tensorrt); "
        "install it: pip uninstall onnxruntime && pip install onnxruntime-directml on Windows"
    )


def test_a_device_that_fails_is_not_replaced_by_the_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime by itself tries again on the CPU, and says so on standard output."""
    attempts = []

    def create(self: object, providers: list[str], *_: object) -> None:
        attempts.append(providers)
        raise RuntimeError("no driver")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    with pytest.raises(DeviceError) as refused:
        open_session(model, device="cuda")
    assert str(refused.value) == f"cuda cannot run {model}: no driver"
    assert attempts == [["CUDAExecutionProvider", "CPUExecutionProvider"]]
    assert capfd.readouterr().out == ""


def test_links_to_weights_where_onnx_runtime_takes_no_bytes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the link, which it follows at least within the folder of the model."""
    folder = model.parent / "apart"
    folder.mkdir()
    proto = onnx.load(model)
    (tensor,) = (each for each in proto.graph.initializer if each.name == "weights")
    set_external_data(tensor, location="weights")
    onnx.save(proto, folder / "model.onnx")
    weights = folder / "weights"
    weights.rename(folder / "kept")
    weights.symlink_to("kept")
    assert open_session(model.read_bytes(), device="cpu", weights=weights)  # bytes are in no folder
    takes_bytes = "add_external_initializers_from_files_in_memory"
    monkeypatch.delattr(onnxruntime.SessionOptions, takes_bytes, raising=False)
    assert open_session(folder / "model.onnx", device="cpu", weights=weights)
    (folder / "kept").rename(model.parent / "elsewhere")
    weights.unlink()
    weights.symlink_to("../elsewhere")
    with contextlib.suppress(ArtifactError):  # 1.32 follows no link out of the folder
        open_session(folder / "model.onnx", device="cpu", weights=weights)
