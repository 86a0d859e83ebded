"""Abilities of this machine's CPU, and the number of cores that this process may use."""

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
    return platform.machine().lower() in _X86


def cpu_kind() -> CpuKind:
    """Return the kind of CPU at hand, as the metadata of a model file names it."""
    if is_x86():
        return "x86-vnni" if has_vnni() else "x86"
    return "arm64" if platform.machine().lower() in _ARM64 else "other"


@cache
def has_vnni() -> bool:
    """Return whether 8-bit products add up in 32 bits (AVX-512 VNNI or AVX-VNNI), as full-range INT8 needs.

    Where it cannot be found out the answer is False, which costs speed and never accuracy.
    """
    if not is_x86():
        return False
    if sys.platform == "linux":
        return bool({"avx512_vnni", "avx_vnni"} & set(_linux_flags(_read("/proc/cpuinfo"))))
    return _numpy_says("AVX512VNNI")


def available_cores() -> int:
    """Return the number of cores that this process may use: its affinity, limited by quotas.

    More threads than this make inference slower, by a factor of three for one thread too many.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, *_quotas()))


def _linux_flags(cpuinfo: str) -> list[str]:
    line = cpuinfo.partition("\nflags")[2].partition("\n")[0]
    return line.partition(":")[2].split()


def _quotas() -> list[int]:
    """Cores granted by each group of this process (cgroup v2): of a container, or of a service of systemd."""
    top = Path("/sys/fs/cgroup")
    own = top / _read("/proc/self/cgroup").partition("0::/")[2].partition("\n")[0]
    groups = [own, *own.parents]
    found = [_quota(_read(f"{group}/cpu.max")) for group in groups if group.is_relative_to(top)]
    return [cores for cores in found if cores is not None] or [sys.maxsize]


def _quota(cpu_max: str) -> int | None:
    """Cores granted by cgroup v2's `cpu.max` ("200000 100000" is two), None without a limit."""
    parts = cpu_max.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return max(1, round(int(parts[0]) / int(parts[1])))


def _numpy_says(feature: str) -> bool:
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as found  # type: ignore[import-not-found]
    except ImportError:
        return False
    return bool(found.get(feature, False))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
