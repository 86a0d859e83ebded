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

    def prefix(self) -> tuple[list[str], Mapping[str, str]]:
        """Return what precedes a program so that it runs on this CPU, and its environment.

        QEMU looks for each path below `system` first; what is not there is the host's.
        """
        write_system_files(
            self.system, self.cpu, host_cpuinfo=Path("/proc/cpuinfo").read_text(encoding="utf-8")
        )
        if self.cpu.arm:
            for name in ("usr", "lib", "bin", "etc", "opt"):
                if not (self.system / name).is_symlink():
                    (self.system / name).symlink_to(self.root / name)
        return [self.cpu.emulator, "-L", str(self.system)], {"QEMU_CPU": self.cpu.model}

    def contained(self) -> tuple[list[str], Mapping[str, str]]:
        """Return the same for an ARM64 program that starts others, each of which has to be emulated as well.

        proot does that without privileges.
        """
        assert self.cpu.arm  # an x86 program would start others on the real CPU
        _, environment = self.prefix()
        bound = [f"{self.system}/proc/cpuinfo:/proc/cpuinfo", f"{self.system}/sys:/sys", str(REPOSITORY)]
        command = ["proot", "-q", self.cpu.emulator, "-r", str(self.root), "-w", str(REPOSITORY)]
        return [*command, *(part for path in ("/dev", "/proc", *bound) for part in ("-b", path))], environment


def python_command(
    machine: Machine | None, arguments: Sequence[str], *, children: bool = False
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and its environment that run `python *arguments` in the repository.

    Args:
        machine: the emulated one; None runs on the CPU at hand.
        arguments: what follows `python`.
        children: whether the program starts others; only ARM64 programs can.
    """
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    if machine is None:
        return [sys.executable, *arguments], os.environ | environment
    prefix, model = machine.contained() if children else machine.prefix()
    environment |= model
    if not machine.cpu.arm:
        return [*prefix, sys.executable, *arguments], os.environ | environment
    program = f"/usr/bin/python{PYTHON}"
    program = program if children else f"{machine.root}{program}"
    site = "/opt/site" if children else f"{machine.root}/opt/site"
    environment |= {"PYTHONPATH": f"{site}:{REPOSITORY}", "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    return [*prefix, program, *arguments], environment | {"LANG": "C.UTF-8"}
