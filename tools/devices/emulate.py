"""The command line that runs this project's Python code on an emulated CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.devices.cpus import Cpu, write_system_files
from tools.devices.root import PYTHON

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Machine:
    """An emulated CPU and its files.

    Attributes:
        cpu: the CPU.
        root: the folder that stands for /: the whole user space of an ARM64 CPU, nothing for an x86 CPU.
        system: the folder with the /proc and /sys of this CPU.
    """

    cpu: Cpu
    root: Path
    system: Path

    def prefix(self, shared: Sequence[Path] = ()) -> tuple[list[str], Mapping[str, str]]:
        """Return what precedes a program so that it runs on this CPU, and its environment.

        Args:
            shared: folders outside the repository that an ARM64 program has to see.
        """
        write_system_files(self.system, self.cpu, host_cpuinfo=Path("/proc/cpuinfo").read_text())
        model = {"QEMU_CPU": self.cpu.model}
        if not self.cpu.arm:
            # QEMU looks for a path below this folder first; what is not there is the host's.
            return [self.cpu.emulator, "-L", str(self.system)], model
        # proot puts the emulator before every program that is started, and needs no privileges.
        bound = ["/dev", "/proc", f"{self.system}/proc/cpuinfo:/proc/cpuinfo", f"{self.system}/sys:/sys"]
        bound += [str(REPOSITORY), *map(str, shared)]
        command = ["proot", "-q", self.cpu.emulator, "-r", str(self.root), "-w", str(REPOSITORY)]
        return [*command, *(part for path in bound for part in ("-b", path))], model


def python_command(
    machine: Machine | None, arguments: Sequence[str], *, shared: Sequence[Path] = ()
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and its environment that run `python *arguments` in the repository.

    Args:
        machine: the emulated one; None runs on the CPU at hand.
        arguments: what follows `python`.
        shared: as for `Machine.prefix`.
    """
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    if machine is None:
        return [sys.executable, *arguments], os.environ | environment
    prefix, model = machine.prefix(shared)
    environment |= model
    if not machine.cpu.arm:
        return [*prefix, sys.executable, *arguments], os.environ | environment
    environment |= {"PYTHONPATH": f"/opt/site:{REPOSITORY}", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    return [*prefix, f"/usr/bin/python{PYTHON}", *arguments], environment | {"LANG": "C.UTF-8"}
