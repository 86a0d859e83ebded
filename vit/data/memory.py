"""Memory that this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN = 4 << 30  # bytes, where the system does not say: a small computer of today, with its own needs met
# What a container may take, and what of it is taken: cgroup v2, then v1.
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that the machine has free, or that the container has left where that is less."""
    free = _available(proc / "meminfo")
    for limit, usage in LIMITS:
        allowed, taken = _number(cgroup / limit), _number(cgroup / usage)
        if allowed is not None and taken is not None:
            free = min(free, max(allowed - taken, 0))
    return free


def _available(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return _physical()


def _physical() -> int:
    """Half of what is built in, where it is not known what is free (macOS)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
