"""Table of the devices that a model can run on, and the options of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import InputError

if TYPE_CHECKING:
    from .model_file.metadata import FileKind

Device = Literal[
    "auto", "cpu", "openvino", "openvino:gpu", "openvino:npu", "qnn", "webgpu", "tensorrt-rtx", "mlx", "cuda",
    "tensorrt", "coreml", "directml",
]  # fmt: skip
Hardware = Literal["cpu", "gpu", "npu"]
OPENVINO = "OpenVINOExecutionProvider"
Precision = Literal["exact", "fast"]
Chip = Literal[
    "snapdragon-8-gen-3", "snapdragon-8-gen-2", "snapdragon-8-gen-1", "snapdragon-8-elite",
    "snapdragon-8-elite-gen-5", "snapdragon-x-elite", "snapdragon-888", "qcs6490",
]  # fmt: skip
Performance = Literal["burst", "sustained_high_performance", "balanced", "power_saver"]
Finalization = Literal[1, 2, 3]


class DeviceError(InputError):
    """A device that is not available, or cannot run the model."""


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device: a provider of ONNX Runtime, the packages that bring it, and how a model runs there."""

    name: str
    provider: str  # of ONNX Runtime
    package: str | None = None  # the plugin, installed beside onnxruntime
    library: str = "get_library_path"  # its function that returns the path of the plugin
    build: str | None = None  # the package whose ONNX Runtime has the provider built in
    hardware: tuple[Hardware, ...]  # the kinds that it may run on, the preferred first
    options: Mapping[str, str] = field(default_factory=dict)  # of the provider, always given
    cache: Mapping[str, str] = field(default_factory=dict)  # more, with "{folder}" for that of the cache
    context: bool = False  # keeps what it compiled as a model of its own (ONNX Runtime's "EP context")
    variants: tuple[FileKind, ...]  # the best first
    fixed_batch: bool = False  # shapes have to be static: one image at a time
    note: str = ""  # the vendor's limits, for the message where no hardware is found

    @property
    def module(self) -> str:
        """The import name of the plugin; empty where the provider is built in."""
        return (self.package or "").replace("-", "_")

    @property
    def on_cpu(self) -> bool:
        """True if it computes on the CPU, as its preferred hardware."""
        return self.hardware[0] == "cpu"

    @property
    def compiles(self) -> bool:
        """True if a cache helps: the provider compiles, and can keep the result."""
        return self.context or bool(self.cache) or self.provider == OPENVINO

    @property
    def install(self) -> str:
        """The command that installs it; builds of ONNX Runtime overwrite each other's files."""
        if self.package is not None:
            return f"pip install {self.package}"
        first = "" if str(self.build).split()[0] == "onnxruntime" else "pip uninstall onnxruntime && "
        return f"{first}pip install {self.build}"


_OPENVINO: Mapping[str, Any] = dict(
    provider=OPENVINO,
    package="onnxruntime-ep-openvino",
    build="onnxruntime-openvino",
    note="OpenVINO's plugin serves hardware of Intel alone; for other CPUs: pip uninstall onnxruntime && "
    "pip install onnxruntime-openvino",
)
_CPU: tuple[FileKind, ...] = ("int8", "float32")
_NPU: tuple[FileKind, ...] = ("npu", "int8", "float16", "float32")
_GPU: tuple[FileKind, ...] = ("float16", "float32", "int8")
_FLOAT: tuple[FileKind, ...] = ("float16", "float32")  # where INT8 operators would run on the CPU

_TABLE = (
    DeviceSpec(
        name="cpu", provider="CPUExecutionProvider", build="onnxruntime", hardware=("cpu",), variants=_CPU,
    ),
    DeviceSpec(name="openvino", hardware=("cpu",), variants=_CPU, **_OPENVINO),
    DeviceSpec(name="openvino:gpu", hardware=("gpu",), variants=_GPU, **_OPENVINO),
    DeviceSpec(name="openvino:npu", hardware=("npu",), variants=_NPU, fixed_batch=True, **_OPENVINO),
    DeviceSpec(
        name="qnn", provider="QNNExecutionProvider", package="onnxruntime-qnn",
        # The CPU of an x86 machine: Qualcomm's simulator of the NPU.
        hardware=("npu", "cpu"), context=True, variants=("npu", *_FLOAT), fixed_batch=True,
        note="QNN needs a Snapdragon with a Hexagon NPU, or an x86-64 CPU, which simulates one",
    ),
    DeviceSpec(
        name="webgpu", provider="WebGpuExecutionProvider", package="onnxruntime-ep-webgpu",
        hardware=("gpu",), variants=_FLOAT,
        note="WebGPU needs a GPU that ONNX Runtime lists; it lists no software driver",
    ),
    DeviceSpec(
        name="tensorrt-rtx", provider="NvTensorRTRTXExecutionProvider",
        package="onnxruntime-ep-nv-tensorrt-rtx", hardware=("gpu",), variants=_GPU,
        cache={"nv_runtime_cache_path": "{folder}"},
        note="TensorRT-RTX needs a GPU of NVIDIA's RTX series",
    ),
    DeviceSpec(
        name="mlx", provider="MLXExecutionProvider", package="onnxruntime-ep-mlx", library="library_path",
        hardware=("gpu", "cpu"), variants=_FLOAT, note="MLX needs a Mac with Apple silicon and macOS 14",
    ),
    DeviceSpec(
        name="cuda", provider="CUDAExecutionProvider", build="onnxruntime-gpu", hardware=("gpu",),
        variants=_GPU,
    ),
    DeviceSpec(
        name="tensorrt", provider="TensorrtExecutionProvider", build="onnxruntime-gpu tensorrt",
        hardware=("gpu",), variants=_GPU,
        cache={"trt_engine_cache_enable": "1", "trt_engine_cache_path": "{folder}"},
    ),
    DeviceSpec(
        name="coreml", provider="CoreMLExecutionProvider", build="onnxruntime on macOS",
        # The older format, which is the default, has no LayerNormalization.
        hardware=("npu", "gpu", "cpu"), options={"ModelFormat": "MLProgram"}, variants=_FLOAT,
        fixed_batch=True, cache={"ModelCacheDirectory": "{folder}"},
    ),
    DeviceSpec(
        name="directml", provider="DmlExecutionProvider", build="onnxruntime-directml on Windows",
        hardware=("gpu",), variants=_GPU,
    ),
)  # fmt: skip
DEVICES: Mapping[str, DeviceSpec] = MappingProxyType({spec.name: spec for spec in _TABLE})

# Qualcomm's NPUs, which the simulator has to be told: htp_arch and soc_model of QNN. The numbers are those of
# QcomChipset in backends/qualcomm/serialization/qc_schema.py of pytorch/executorch, which Qualcomm maintains;
# that of the X Elite (SC8380XP) is from QnnTypes.h of Qualcomm's SDK. With an unknown
# soc_model QNN takes no operator.
CHIPS: Mapping[Chip, tuple[str, str]] = MappingProxyType(
    {
        "snapdragon-8-gen-3": ("75", "57"),  # SM8650
        "snapdragon-8-gen-2": ("73", "43"),  # SM8550
        "snapdragon-8-gen-1": ("69", "36"),  # SM8450
        "snapdragon-8-elite": ("79", "69"),  # SM8750
        "snapdragon-8-elite-gen-5": ("81", "87"),  # SM8850
        "snapdragon-x-elite": ("73", "60"),
        "snapdragon-888": ("68", "30"),  # SM8350
        "qcs6490": ("68", "93"),  # QCM6490; of boards such as the RB3 Gen 2
    }
)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options of a device other than the plain CPU; a device ignores those that it does not have.

    Args:
        precision: "exact" computes in float32 what is not INT8, where the device can; "fast" computes it in
            what its provider prefers, such as bfloat16 on a CPU with AMX.
        cache: a folder for what a provider compiles, so that the next start is faster; None compiles anew.
            The folder holds native code: name one that only trusted users can write to.
        partial: accept a device that runs less than 90 % of the multiply-adds, and the CPU the rest.
        chip: the NPU that Qualcomm's simulator simulates: one of `CHIPS`, or the soc_model of another; None:
            the first of `CHIPS`.
        performance: clock and voltage of Qualcomm's NPU, htp_performance_mode of QNN; means nothing in the
            simulator. None leaves it to QNN, and so for the next.
        finalization: effort of QNN's compiler, from 1 (short) to 3 (long, for the fastest graph).
        profile: the path, without its end, of a file into which ONNX Runtime writes the kernels that run and
            their times, until `end_profiling` of the session; None for none.

    Raises:
        ValueError: for an unknown value of one of them.
    """

    precision: Precision = "exact"
    cache: Path | None = None
    partial: bool = False
    chip: Chip | int | None = None
    performance: Performance | None = None
    finalization: Finalization | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        chips = (None, *CHIPS, *((self.chip,) if type(self.chip) is int and self.chip > 0 else ()))
        for name, value, known in (
            ("precision", self.precision, get_args(Precision)),
            ("chip", self.chip, chips),
            ("performance", self.performance, (None, *get_args(Performance))),
            ("finalization", self.finalization, (None, *get_args(Finalization))),
        ):
            if value not in known:
                expected = ", ".join(str(each) for each in known if each is not None)
                number = " or a number from 1" if name == "chip" else ""
                raise ValueError(f"{name} must be one of {expected}{number}, found {value!r}")
