"""Run a command as on an x86 CPU without AVX-512 and VNNI.

    python -m tools.devices.without_vnni python -m benchmarks.latency --sizes small

In copies of onnxruntime, OpenVINO and torch, each `cpuid` instruction becomes one that traps, and a preloaded
library answers it without these features (`cpuid.c`). /proc/cpuinfo is covered for the command alone.
The kernels are then those of an AVX2 CPU; clock, caches and memory stay those of this machine.

Needs Linux on x86-64, gcc, objdump and readelf (binutils), and unshare (util-linux). The first run takes a
minute; the copies stay in the environment, beside the packages.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from runtime.command.line import run_command
from runtime.errors import InputError
from runtime.writing import temporary_folder, write_atomically
from tools.devices.cpus import CPUS, write_system_files

PACKAGES = ("onnxruntime", "openvino", "onnxruntime_ep_openvino", "torch")
TOOLS = ("gcc", "objdump", "readelf", "unshare")
CPUID, TRAP = b"\x0f\xa2", b"\x0f\x0b"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    return run_command("tools.devices.without_vnni", lambda: _run(command))


def _run(command: list[str]) -> int:
    check_command(command)
    changed = answer_cpuid("without-vnni", PACKAGES)
    folder = changed_packages_folder()
    write_system_files(
        folder, CPUS["haswell"], host_cpuinfo=Path("/proc/cpuinfo").read_text(encoding="utf-8")
    )
    covered = 'mount --bind "$1" /proc/cpuinfo && shift && exec "$@"'
    words = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        covered,
        "sh",
        str(folder / "proc/cpuinfo"),
        *command,
    ]
    return subprocess.run(words, env=os.environ | changed, check=False).returncode


def answer_cpuid(answer: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the environment in which the `cpuid` of packages gets another answer; change copies of them.

    Args:
        answer: "without-vnni" or "intel"; one more than those that the environment has already.
        packages: names in an import; those that are not installed are left out.
    """
    folder = changed_packages_folder()
    library = folder / "cpuid.so"
    compile_library(Path(__file__).with_name("cpuid.c"), library)
    copies = [str(copy_package(package, folder)) for package in packages if importlib.util.find_spec(package)]
    path = os.pathsep.join([*copies, *filter(None, [os.environ.get("PYTHONPATH")])])
    answers = ",".join([*filter(None, [os.environ.get("CPUID_ANSWERS")]), answer])
    return {"LD_PRELOAD": str(library), "PYTHONPATH": path, "CPUID_ANSWERS": answers}


def changed_packages_folder() -> Path:
    """Return the folder of the copies, in the environment beside the packages."""
    folder = Path(sys.prefix) / "without-vnni"
    folder.mkdir(exist_ok=True)
    return folder


def check_command(command: Sequence[str]) -> None:
    """Check that a command can run as on another CPU: the system, the tools, the program itself."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise InputError(f"expected Linux on x86_64, found {sys.platform} on {platform.machine()}")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise InputError(f"not installed: {', '.join(missing)}; they are in gcc, binutils and util-linux")
    if not command or shutil.which(command[0]) is None:
        raise InputError("expected a command to run, e.g. python -m benchmarks.latency")


def compile_library(source: Path, library: Path) -> None:
    """Compile a shared library."""
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)


def copy_package(package: str, folder: Path) -> Path:
    """Return a folder for PYTHONPATH with the changed package; it is made once for each version."""
    spec = importlib.util.find_spec(package)
    assert spec is not None  # looked for before
    assert spec.origin is not None
    place = folder / f"{package}-{metadata.version(package)}"
    if not place.exists():
        print(f"copying {package}", file=sys.stderr)
        with temporary_folder(folder) as aside:
            shutil.copytree(Path(spec.origin).parent, aside / "copy" / package, copy_function=_link_file)
            for library in sorted((aside / "copy" / package).rglob("*.so*")):
                change(library)
            (aside / "copy").rename(place)
    return place


def _link_file(source: str, target: str) -> None:
    """Link a file that stays as it is; `change` replaces the others."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def change(library: Path) -> int:
    """Replace each `cpuid` instruction of a library by a trap, in a new file; returns their number."""
    places = list(_places(library))
    if places:
        content = bytearray(library.read_bytes())
        for place in places:
            if content[place : place + 2] != CPUID:
                raise InputError(f"{library}: expected cpuid at byte {place}, found something else")
            content[place : place + 2] = TRAP
        write_atomically(library, content)
    return len(places)


def _places(library: Path) -> Iterator[int]:
    """Offsets in the file of the `cpuid` instructions in the code of a library."""
    loaded = [
        tuple(int(word, 16) for word in match.groups())
        for line in _read_lines("readelf", "-lW", library)
        if (match := re.match(r" +LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+)", line))
    ]
    for line in _read_lines("objdump", "-d", "--no-show-raw-insn", library):
        if match := re.match(r" *(\w+):\s+cpuid\b", line):
            address = int(match[1], 16)
            yield from (
                offset + address - start for offset, start, size in loaded if start <= address < start + size
            )


def _read_lines(tool: str, *words: str | Path) -> Iterator[str]:
    """The lines that a tool prints, one at a time: the code of torch is gigabytes of them."""
    with subprocess.Popen([tool, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise InputError(f"{tool} {' '.join(map(str, words))}: exit code {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
