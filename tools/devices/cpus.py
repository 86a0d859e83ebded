"""CPUs that QEMU emulates for one process, and what Linux would say about them.

ONNX Runtime reads /proc/cpuinfo. On an emulated ARM64 CPU it crashes at import when it finds the x86 CPU of
the host there; on an emulated x86 CPU it would be told of instructions that the emulation lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CORES = 2
_ARM_BASE = "fp asimd evtstrm crc32 cpuid"
_NO_AVX512 = re.compile(r" (avx512\w*|avx_vnni\w*|amx_\w+)")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A CPU to run on.

    Attributes:
        kind: its kind, as the metadata of a model file names it.
        emulator: the program that emulates it.
        model: its name for QEMU.
        features: Linux' names of what an ARM64 CPU can do.
        midr: the identification register of an ARM64 CPU; its part number stands in bits 4 to 15.
        note: what a reader has to know about it.
    """

    kind: str
    emulator: str
    model: str = ""
    features: str = ""
    midr: int = 0
    note: str = ""

    @property
    def arm(self) -> bool:
        """True if the CPU runs ARM64 programs."""
        return self.kind == "arm64"


CPUS: Mapping[str, Cpu] = {
    "cortex-a72": Cpu(
        kind="arm64",
        emulator="qemu-aarch64-static",
        model="cortex-a72",
        features=_ARM_BASE,
        midr=0x410FD083,
        note="Raspberry Pi 4; no dot product",
    ),
    "cortex-a76": Cpu(
        kind="arm64",
        emulator="qemu-aarch64-static",
        model="cortex-a76",
        features=f"{_ARM_BASE} aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp",
        midr=0x414FD0B1,
        note="Raspberry Pi 5; dot product",
    ),
    "haswell": Cpu(kind="x86", emulator="qemu-x86_64-static", model="Haswell", note="AVX2 without VNNI"),
}


def write_system_files(root: Path, cpu: Cpu, *, host_cpuinfo: str = "") -> None:
    """Write the files below /proc and /sys that describe `cpu` to programs.

    Args:
        root: the folder that stands for / in the emulation.
        cpu: the emulated CPU.
        host_cpuinfo: /proc/cpuinfo of this machine, of which an x86 CPU takes all but AVX-512, VNNI and AMX.
    """
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/cpuinfo").write_text(_arm_cpuinfo(cpu) if cpu.arm else _NO_AVX512.sub("", host_cpuinfo))
    if not cpu.arm:
        return
    folder = root / "sys/devices/system/cpu"
    for core in range(CORES):
        identification = folder / f"cpu{core}/regs/identification"
        identification.mkdir(parents=True, exist_ok=True)
        (identification / "midr_el1").write_text(f"0x{cpu.midr:016x}\n")
    for name in ("possible", "present", "online"):
        (folder / name).write_text(f"0-{CORES - 1}\n")
    (folder / "kernel_max").write_text("255\n")


def _arm_cpuinfo(cpu: Cpu) -> str:
    fields = {
        "BogoMIPS": "108.00",
        "Features": cpu.features,
        "CPU implementer": f"0x{cpu.midr >> 24:x}",
        "CPU architecture": "8",
        "CPU variant": f"0x{cpu.midr >> 20 & 15:x}",
        "CPU part": f"0x{cpu.midr >> 4 & 4095:x}",
        "CPU revision": str(cpu.midr & 15),
    }
    lines = "".join(f"{name}\t: {value}\n" for name, value in fields.items())
    return "".join(f"processor\t: {core}\n{lines}\n" for core in range(CORES))
