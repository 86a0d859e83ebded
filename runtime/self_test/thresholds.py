"""Limits on the distance from the answers of the exporting machine, by what computes the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..cpu import cpu_kind, cpu_name
from ..devices import DEVICES, DeviceOptions
from ..model_file.metadata import Variant
from ..onnx_runtime import onnxruntime
from .document import SelfTest

Arithmetic = Literal["the same CPU", "another CPU", "float32", "16-bit floats", "a simulated NPU", "an NPU"]

# Lowest SQNR in dB. On the same CPU and ONNX Runtime the bits are equal, for any number of threads; the
# others are below what was measured on devices without a fault (docs/guides/check.md has the table).
MIN_SQNR: Mapping[Arithmetic, float] = {
    "the same CPU": 120.0,
    "another CPU": 90.0,
    "float32": 60.0,
    "16-bit floats": 25.0,
    "a simulated NPU": 30.0,
    "an NPU": 20.0,
}
# A float that rounds differently in its last bit can end in another step of INT8, which the next layers pass
# on. Where that draws all noise of the quantization anew, answers differ by 3 dB more than this noise.
_MORE_NOISE: Mapping[Arithmetic, float] = {  # dB; others: 3 dB
    "16-bit floats": 6.0, "a simulated NPU": 6.0, "an NPU": 6.0,
}  # fmt: skip
_EXACT_DEVICES = ("openvino", "webgpu", "directml", "mlx")  # in float32 unless asked for "fast"


def find_arithmetic(
    device: str, variant: Variant, options: DeviceOptions, *, same_machine: bool, simulated: bool
) -> Arithmetic:
    """Return what computes the answers of a model file on a device.

    `same_machine` is that of `is_same_machine`, `simulated` that of `runtime.plugins.is_simulated`.
    """
    if device == "cpu":
        return "the same CPU" if same_machine else "another CPU"
    spec = DEVICES.get(device)
    if spec is None or spec.hardware[0] == "npu":
        return "a simulated NPU" if simulated else "an NPU"
    exact = options.precision == "exact" and device.partition(":")[0] in _EXACT_DEVICES
    on_gpu_in_half = variant == "float16" and not spec.on_cpu
    return "float32" if exact and not on_gpu_in_half else "16-bit floats"


def is_same_machine(self_test: SelfTest) -> bool:
    """Return whether the bits of the exporting machine are expected here: its CPU and its ONNX Runtime.

    Without VNNI, and on ARM, CPUs of one name differ in the instructions for float numbers.
    """
    here = ({"kind": "x86-vnni", "name": cpu_name()}, f"onnxruntime {onnxruntime.__version__}")
    return cpu_kind() == "x86-vnni" and (self_test.cpu, self_test.runtime) == here


def min_sqnr(arithmetic: Arithmetic, variant: Variant, quantization: float) -> float:
    """Return the lowest SQNR, in dB, that answers may have against those of the exporting machine.

    `quantization` is the SQNR of this file's answers against those of float32 there, in dB.
    """
    least, npu = MIN_SQNR[arithmetic], arithmetic.endswith("NPU")  # which has floats of 16 bits alone
    if arithmetic == "the same CPU" or variant == "float32" or (npu and variant == "float16"):
        return least
    if variant == "float16":  # a CPU computes in float32 between its layers, or in 16 bits, as it can
        return min(least, MIN_SQNR["16-bit floats"])
    return min(least, quantization - _MORE_NOISE.get(arithmetic, 3.0))
