"""INT8 targets: the form of the weights, the CPUs on which a file of that form is exact, and the NPU.

The fast INT8 kernel of an x86 CPU without VNNI adds two products of 8-bit numbers in 16 bits. Full-range
weights overflow there without an error. All other kernels (VNNI, ARM64, wasm) add in 32 bits.

A file of target "npu" is for one image at a time, with quantized numbers between all operators; a CPU
computes it in float32 and is slower with it than with the float32 file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Target = Literal["any-cpu", "full-range", "npu"]
CpuKind = Literal["x86-vnni", "x86", "arm64", "wasm", "other"]

TARGETS: tuple[Target, ...] = get_args(Target)
CPU_TARGETS: tuple[Target, ...] = ("any-cpu", "full-range")
# On these a session with default options is exact, at full speed (a file for an NPU is slow on all).
EXACT_ON: Mapping[Target, tuple[CpuKind, ...]] = MappingProxyType(
    {
        "any-cpu": ("x86-vnni", "x86", "arm64", "wasm"),
        "full-range": ("x86-vnni", "arm64", "wasm"),
        "npu": ("x86-vnni", "arm64", "wasm"),
    }
)
_RENAMED: Mapping[object, Target] = MappingProxyType(
    {"any": "any-cpu", "avx2": "any-cpu", "vnni": "full-range", "arm64": "full-range"}
)


def choose_target(cpu: CpuKind) -> Target:
    """Return the target with the most precise weights that is exact at full speed on a kind of CPU.

    Args:
        cpu: the kind of CPU, as `cpu_kind` returns it.
    """
    return "full-range" if cpu in EXACT_ON["full-range"] else "any-cpu"


def unknown_target(found: object) -> str:
    """Return the error message for a target that does not exist; for a former name, with the new one.

    Args:
        found: what was given as the target.
    """
    expected = f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
    new = _RENAMED.get(found) if isinstance(found, str) else None
    hint = f"; {found} is called {new} now" if new is not None else ""
    return f"expected target {expected}, found {found!r}{hint}"
