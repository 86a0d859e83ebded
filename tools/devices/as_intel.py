"""Run a command as on a CPU of Intel: `python -m tools.devices.as_intel COMMAND`.

OpenVINO's plugin for ONNX Runtime serves Intel's CPUs alone, and ONNX Runtime reads the vendor by `cpuid`. In
a copy of onnxruntime that instruction traps and is answered with Intel's name (`without_vnni.py` says how);
all features of the CPU stay. With `without_vnni` in between, those are hidden as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from runtime.command.line import run_command
from tools.devices.without_vnni import answer_cpuid, check_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("tools.devices.as_intel", lambda: _run(command))


def _run(command: list[str]) -> int:
    check_command(command)
    changed = answer_cpuid("intel", ("onnxruntime",))
    return subprocess.run(command, env=os.environ | changed, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
