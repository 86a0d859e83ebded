"""Kind of this machine's CPU, and the number of cores that this process may use."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path

from .model_file.targets import CpuKind

_X86 = {"x86_64", "amd64", "i386", "i686", "x86"}
_ARM64 = {"aarch64", "arm64"}


def is_x86() -> bool:
    """Return whether this is an x86 CPU, of 32 or 64 bits."""
    return platform.machine().lower() in _X86


def cpu_kind() -> CpuKind:
    """Return the kind of this CPU, as the metadata of a model file names it."""
    if is_x86():
        return "x86-vnni" if has_vnni() else "x86"
    return "arm64" if platform.machine().lower() in _ARM64 else "other"


def cpu_name() -> str:
    """Return the processor's own name where the system tells it: "AMD EPYC 9004"."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def has_vnni() -> bool:
    """Return whether this x86 CPU sums 8-bit products in 32 bits (AVX-512 VNNI or AVX-VNNI).

    Full-range INT8 weights need that. False where it cannot be found out, which costs speed, never accuracy.
    """
    if not is_x86():
        return False
    if sys.platform == "linux":
        return bool({"avx512_vnni", "avx_vnni"} & set(_linux_flags(_read("/proc/cpuinfo"))))
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as found  # type: ignore[import-not-found]
    except ImportError:
        return False
    return bool(found.get("AVX512VNNI", False))


def available_cores() -> int:
    """Return the number of cores that this process may use: its affinity, limited by quotas of cgroups.

    One thread more than this makes inference slower by a factor of three.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Of each group of this process (cgroup v2): a container, or a systemd service.
    top = Path("/sys/fs/cgroup")
    own = top / _read("/proc/self/cgroup").partition("0::/")[2].partition("\n")[0]
    groups = [group for group in (own, *own.parents) if group.is_relative_to(top)]
    quotas = [quota for group in groups if (quota := _quota(_read(f"{group}/cpu.max"))) is not None]
    return max(1, min([allowed, *quotas]))


def _linux_flags(cpuinfo: str) -> list[str]:
    line = cpuinfo.partition("\nflags")[2].partition("\n")[0]
    return line.partition(":")[2].split()


def _quota(cpu_max: str) -> int | None:
    """Return the cores granted by a file `cpu.max` ("200000 100000" is two); None without a limit."""
    parts = cpu_max.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return max(1, round(int(parts[0]) / int(parts[1])))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
