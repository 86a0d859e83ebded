"""On what a figure was measured: drift and speed depend on it."""

from __future__ import annotations

import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.cpu import available_cores, cpu_kind, has_vnni
from runtime.model_file.targets import Target, target_for


def producer() -> str:
    """The name and version that is written into what we make."""
    try:
        return f"vit-edge {version('vit-edge')}"
    except PackageNotFoundError:  # a checkout that is not installed
        return "vit-edge"


def now() -> str:
    """Return the date and time in UTC, to the minute."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def describe_environment() -> dict[str, Any]:
    """Return the CPU and the versions of the packages that are installed, as JSON values."""
    packages = {}
    for name in ("onnxruntime", "torch", "onnx", "numpy", "pillow"):
        with suppress(PackageNotFoundError):  # an ONNX model needs no torch
            packages[name] = version(name)
    return {
        "cpu": cpu_name(),
        "cpu_kind": cpu_kind(),
        "vnni": has_vnni(),
        "cores": available_cores(),
        "packages": packages,
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it, e.g. "AMD EPYC 9004"."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def target_here() -> Target:
    """Return the INT8 target for the CPU at hand."""
    return target_for(cpu_kind())
