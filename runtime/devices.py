"""Table of the devices that a model can run on, and the plugins of ONNX Runtime that bring some of them."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from .cpu import is_x86
from .errors import InputError
from .text import clean_line

if TYPE_CHECKING:
    from .model_file.metadata import Variant

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package


@cache  # so that each message is logged once per process
def warn_once(message: str) -> None:
    """Log a warning that this process has not logged yet."""
    _log.warning(message)


# --- The table ---

Device = Literal[
    "auto", "cpu", "openvino", "openvino:gpu", "openvino:npu", "qnn", "webgpu", "tensorrt-rtx", "mlx", "cuda",
    "tensorrt", "coreml", "directml",
]  # fmt: skip
Hardware = Literal["cpu", "gpu", "npu"]
Precision = Literal["exact", "fast"]


class DeviceError(InputError):
    """A device that is not available, or cannot run the model."""


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device: a provider of ONNX Runtime, the packages that bring it, and how a model runs there."""

    name: str
    provider: str  # of ONNX Runtime
    package: str | None = None  # the plugin, installed beside onnxruntime
    module: str | None = None  # its import name
    library: str = "get_library_path"  # its function that returns the path of the plugin
    build: str | None = None  # the package whose ONNX Runtime has the provider built in
    hardware: tuple[Hardware, ...]  # the kinds that it may run on, the preferred first
    options: Mapping[str, str] = field(default_factory=dict)  # of the provider, always given
    cache: Mapping[str, str] = field(default_factory=dict)  # more, with "{folder}" for that of the cache
    context: bool = False  # keeps what it compiled as a model of its own (ONNX Runtime's "EP context")
    variants: tuple[Variant, ...]  # the best first
    fixed_batch: bool = False  # shapes have to be static: one image at a time
    note: str = ""  # the vendor's limits, for the message where no hardware is found
    extra: str | None = None  # in pyproject.toml

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the CPU, as its preferred hardware."""
        return self.hardware[0] == "cpu"

    @property
    def compiles(self) -> bool:
        """Whether a cache helps: the provider compiles, and can keep the result."""
        return self.context or bool(self.cache) or self.provider == _OPENVINO["provider"]

    @property
    def install(self) -> str:
        """The command that installs it; builds of ONNX Runtime overwrite each other's files."""
        if self.package is not None:
            return f"pip install {self.package}"
        first = "" if str(self.build).split()[0] == "onnxruntime" else "pip uninstall onnxruntime && "
        return f"{first}pip install {self.build}"


_OPENVINO: Mapping[str, Any] = dict(
    provider="OpenVINOExecutionProvider",
    package="onnxruntime-ep-openvino",
    module="onnxruntime_ep_openvino",
    build="onnxruntime-openvino",
    extra="openvino",
    note="OpenVINO's plugin serves hardware of Intel alone; for other CPUs: pip uninstall onnxruntime && "
    "pip install onnxruntime-openvino",
)
_GPU: tuple[Variant, ...] = ("float16", "float32", "int8")
_FLOAT: tuple[Variant, ...] = ("float16", "float32")
_ENGINES = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "{folder}"}

DEVICES: Mapping[str, DeviceSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            DeviceSpec(
                name="cpu",
                provider="CPUExecutionProvider",
                build="onnxruntime",
                hardware=("cpu",),
                variants=("int8", "float32"),
                extra="cpu",
            ),
            DeviceSpec(name="openvino", hardware=("cpu",), variants=("int8", "float32"), **_OPENVINO),
            DeviceSpec(name="openvino:gpu", hardware=("gpu",), variants=_GPU, **_OPENVINO),
            DeviceSpec(
                name="openvino:npu",
                hardware=("npu",),
                variants=("int8", "float16", "float32"),
                fixed_batch=True,
                **_OPENVINO,
            ),
            DeviceSpec(
                name="qnn",
                provider="QNNExecutionProvider",
                package="onnxruntime-qnn",
                module="onnxruntime_qnn",
                hardware=("npu", "cpu"),  # the CPU of an x86 machine: Qualcomm's simulator of the NPU
                context=True,
                variants=_FLOAT,
                fixed_batch=True,
                extra="qnn",
                note="QNN needs a Snapdragon with a Hexagon NPU, or an x86-64 CPU, which simulates one",
            ),
            DeviceSpec(
                name="webgpu",
                provider="WebGpuExecutionProvider",
                package="onnxruntime-ep-webgpu",
                module="onnxruntime_ep_webgpu",
                hardware=("gpu",),
                variants=_FLOAT,
                extra="webgpu",
                note="WebGPU needs a GPU that ONNX Runtime lists; software drivers are not listed",
            ),
            DeviceSpec(
                name="tensorrt-rtx",
                provider="NvTensorRTRTXExecutionProvider",
                package="onnxruntime-ep-nv-tensorrt-rtx",
                module="onnxruntime_ep_nv_tensorrt_rtx",
                hardware=("gpu",),
                cache={"nv_runtime_cache_path": "{folder}"},
                variants=_GPU,
                extra="tensorrt-rtx",
                note="TensorRT-RTX needs a GeForce or workstation GPU of NVIDIA's RTX series",
            ),
            DeviceSpec(
                name="mlx",
                provider="MLXExecutionProvider",
                package="onnxruntime-ep-mlx",
                module="onnxruntime_ep_mlx",
                library="library_path",
                hardware=("gpu", "cpu"),
                variants=_FLOAT,
                extra="mlx",
                note="MLX needs a Mac with Apple silicon and macOS 14",
            ),
            DeviceSpec(
                name="cuda",
                provider="CUDAExecutionProvider",
                build="onnxruntime-gpu",
                hardware=("gpu",),
                variants=_GPU,
                extra="gpu",
            ),
            DeviceSpec(
                name="tensorrt",
                provider="TensorrtExecutionProvider",
                build="onnxruntime-gpu tensorrt",
                hardware=("gpu",),
                cache=_ENGINES,
                variants=_GPU,
            ),
            DeviceSpec(
                name="coreml",
                provider="CoreMLExecutionProvider",
                build="onnxruntime on macOS",
                hardware=("npu", "gpu", "cpu"),
                options={"ModelFormat": "MLProgram"},  # the older format lacks LayerNormalization
                cache={"ModelCacheDirectory": "{folder}"},
                variants=_FLOAT,
                fixed_batch=True,
            ),
            DeviceSpec(
                name="directml",
                provider="DmlExecutionProvider",
                build="onnxruntime-directml on Windows",
                hardware=("gpu",),
                variants=_GPU,
            ),
        )
    }
)

# Qualcomm's NPUs, which the simulator has to be told: htp_arch and soc_model of QNN.
CHIPS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"snapdragon-8-gen-3": ("75", "57"), "snapdragon-8-gen-2": ("73", "43")}
)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """How a model runs on a device other than the plain CPU; a device ignores what it does not have.

    Args:
        precision: "exact" computes in float32 what is not INT8, where the device can; "fast" computes it in
            what its provider prefers, such as bfloat16 on a CPU with AMX.
        cache: a folder for what a provider compiles, so that the next start is faster; None compiles anew.
            The folder holds native code: name one that only trusted users can write to.
        partial: accept a device that runs less than 90 % of the multiply-adds, and the CPU the rest.
        chip: the NPU that Qualcomm's simulator simulates, of `CHIPS`; None: the first of them.

    Raises:
        ValueError: for an unknown precision or chip.
    """

    precision: Precision = "exact"
    cache: Path | None = None
    partial: bool = False
    chip: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("chip", self.chip, (None, *CHIPS)),
        ):
            if value not in known:
                expected = ", ".join(each for each in known if each)
                raise ValueError(f"{name} must be one of {expected}, found {value!r}")


# --- Which of them are here ---

OLDEST_FOR_PLUGINS = (1, 24)  # of ONNX Runtime
_registering = threading.Lock()
_registered: set[str] = set()  # providers whose plugin this process has registered
_opened_in: dict[str, int] = {}  # the process that first opened a session, by provider of a plugin


def _after_fork() -> None:
    global _registering
    _registering = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_built_in(spec: DeviceSpec) -> bool:
    """Return whether the installed ONNX Runtime has the provider of a device built in."""
    from .onnx_runtime import onnxruntime

    if spec.provider in _registered or _list_plugin_devices(spec):  # these count as available, too
        return False
    return spec.provider in onnxruntime.get_available_providers()


def available_devices() -> tuple[str, ...]:
    """Return the devices that can be opened here: built in, or a plugin that finds its hardware.

    It loads the plugins that are installed, which takes up to a second and some memory each.
    """
    return tuple(_list_available())


def _list_available() -> Iterator[str]:
    for name, spec in DEVICES.items():
        try:
            if is_built_in(spec) or (spec.module is not None and find_plugin_devices(spec)):
                yield name
        except DeviceError:
            pass


def find_plugin_devices(spec: DeviceSpec) -> list[Any]:
    """Return the hardware that the plugin of a device lists, the best kind alone, as OrtEpDevice.

    Args:
        spec: the device; its plugin is registered where that was not done before.

    Raises:
        DeviceError: when the plugin is not installed or does not load, when ONNX Runtime is too old for
            plugins, and when it lists no hardware of the kinds of this device.
    """
    _register_plugin(spec)
    listed = _list_plugin_devices(spec)
    kinds = [str(each.device.type.name).lower() for each in listed]
    for kind in spec.hardware:
        if found := [each for each, its in zip(listed, kinds, strict=True) if its == kind]:
            return found
    lists = ", ".join(kinds) or "nothing"
    raise DeviceError(
        f"no {spec.name} on this machine: the plugin {spec.package} lists {lists}, expected "
        f"{' or '.join(spec.hardware)}{'; ' if spec.note else ''}{spec.note}"
    )


def _list_plugin_devices(spec: DeviceSpec) -> list[Any]:
    from .onnx_runtime import onnxruntime

    if not hasattr(onnxruntime, "get_ep_devices"):  # since 1.23
        return []
    every = onnxruntime.get_ep_devices()
    return [each for each in every if each.ep_name == spec.provider and "library_path" in each.ep_metadata]


def _register_plugin(spec: DeviceSpec) -> None:
    """Register the plugin of a device, once per process; a fork inherits the registration."""
    from .onnx_runtime import onnxruntime

    if spec.module is None or spec.package is None:
        raise DeviceError(f"no {spec.name} in this ONNX Runtime; install it: {spec.install}")
    if find_spec(spec.module) is None:
        raise DeviceError(
            f"no {spec.name} here: the package {spec.package} is not installed; install it: {spec.install}"
        )
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < OLDEST_FOR_PLUGINS:
        oldest = ".".join(map(str, OLDEST_FOR_PLUGINS))
        raise DeviceError(
            f"{spec.package} needs ONNX Runtime {oldest} or newer, found {onnxruntime.__version__}: "
            f"pip install --upgrade onnxruntime {spec.package}"
        )
    with _registering:
        if spec.provider in _registered or _list_plugin_devices(spec):  # the app may have registered it
            return
        try:
            library = getattr(import_module(spec.module), spec.library)()
            onnxruntime.register_execution_provider_library(spec.provider, str(library))
        except Exception as error:  # of the package, or pybind's own classes, of which there is no list
            found = clean_line(f"{type(error).__name__}: {error}")
            raise DeviceError(
                f"the plugin {spec.package} of {spec.name} does not load ({found}); install it again: "
                f"pip install --upgrade --force-reinstall onnxruntime {spec.package}"
            ) from error
        _registered.add(spec.provider)


def refuse_fork(spec: DeviceSpec) -> None:
    """Refuse to open a plugin's session in a fork of a process that has opened one: it would hang.

    Args:
        spec: the device.

    Raises:
        DeviceError: in such a process.
    """
    if _opened_in.setdefault(spec.provider, os.getpid()) != os.getpid():
        raise DeviceError(
            f"{spec.name} was opened before this process was forked, and its threads are not in a fork; open "
            'the model after the fork, or start processes with multiprocessing.get_context("spawn")'
        )


# --- Options of their providers ---


def provider_options(
    spec: DeviceSpec,
    plugin: Any | None,
    *,
    threads: int,
    cores: int,
    given: DeviceOptions,
    folder: Path | None,
) -> dict[str, str]:
    """Return the options of a provider.

    Args:
        spec: the device.
        plugin: the OrtEpDevice of its plugin; None where the provider is built in.
        threads: CPU threads of one prediction.
        cores: that this process may use.
        given: what the caller chose.
        folder: for what this provider compiles of this model; None for nowhere.

    Raises:
        DeviceError: for a chip where there is no simulator.
    """
    found = dict(spec.options)
    if folder is not None:
        found |= {name: value.format(folder=folder) for name, value in spec.cache.items()}
    if spec.provider == _OPENVINO["provider"]:
        return found | _openvino_options(spec, plugin, threads, cores, given, folder)
    if spec.name == "qnn" and plugin is not None:
        return found | _qnn_options(spec, plugin, given)
    return found


def _openvino_options(
    spec: DeviceSpec, plugin: Any | None, threads: int, cores: int, given: DeviceOptions, folder: Path | None
) -> dict[str, str]:
    kind = spec.hardware[0].upper()
    if plugin is None:  # the provider that is built in, which has options of its own
        found = {"device_type": kind}
        if kind == "CPU":
            found |= {"num_of_threads": str(threads), "num_streams": str(max(1, cores // threads))}
            found |= {"precision": "FP32"} if given.precision == "exact" else {}
        return found | ({} if folder is None else {"cache_dir": str(folder)})
    config = {} if folder is None else {"CACHE_DIR": str(folder)}
    if kind == "CPU":
        streams = max(1, cores // threads)  # as many predictions at a time as in ONNX Runtime
        config |= {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(streams * threads)}
        if given.precision == "exact":
            config["INFERENCE_PRECISION_HINT"] = "f32"
    return {"load_config": json.dumps({kind: config})} if config else {}


def _qnn_options(spec: DeviceSpec, plugin: Any, given: DeviceOptions) -> dict[str, str]:
    """Return the backend and, for the simulator, the NPU: without it QNN fails with MEM_ALLOC."""
    backend = {"backend_path": str(import_module(str(spec.module)).get_qnn_htp_path())}
    if plugin.device.type.name.lower() == "npu":
        if given.chip is not None:
            raise DeviceError(f"chip is for the simulator, and here is an NPU: leave chip={given.chip!r} out")
        return backend
    if not is_x86():
        raise DeviceError(f"no qnn on this machine: the plugin {spec.package} lists no NPU; {spec.note}")
    chip = given.chip or next(iter(CHIPS))
    warn_once(
        f"qnn: no NPU here; Qualcomm's simulator of the {chip} computes, which is slow: times mean nothing"
    )
    htp_arch, soc_model = CHIPS[chip]
    return backend | {"htp_arch": htp_arch, "soc_model": soc_model}
