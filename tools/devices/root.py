"""An ARM64 user space: Debian's Python, and the packages of constraints.txt as wheels for aarch64."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

RELEASE, PYTHON = "bookworm", "3.11"  # of Debian, and its Python
# coreutils, bash and procps for the programs that tests start; libstdc++6 for ONNX Runtime
DEBIAN = ("python3", "libstdc++6", "coreutils", "bash", "procps", "findutils")
RUNTIME = ("numpy", "pillow", "onnxruntime")
CHECKS = ("onnx", "onnx-ir", "ml_dtypes", "protobuf", "typing_extensions", "sympy", "mpmath")
TESTS = ("pytest", "pytest-timeout", "hypothesis", "psutil", "iniconfig", "pluggy", "packaging", "Pygments")
TESTS += ("sortedcontainers",)
_GLIBC = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_26", "2_17")  # bookworm has 2.36
PROGRAMS = {"mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "proot": "proot"}


class SetUpError(RuntimeError):
    """The emulated user space cannot be made; the message says what to install or repair."""


def expect_programs(programs: Sequence[str] = tuple(PROGRAMS)) -> None:
    """Check that the programs are installed.

    Raises:
        SetUpError: with the line that installs what is missing.
    """
    if missing := [program for program in programs if shutil.which(program) is None]:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        raise SetUpError(f"expected {', '.join(missing)}, not found; apt-get install {packages}")


def make_root(root: Path, constraints: Path, say: Callable[[str], None]) -> Path:
    """Make the user space below `root` unless it is complete already.

    Args:
        root: the folder that becomes its /.
        constraints: the file with the versions, `name==version` per line.
        say: called with a line for each step.

    Raises:
        SetUpError: when a program is missing or a step fails.
    """
    expect_programs()
    pins = _pins(constraints, (*RUNTIME, *CHECKS, *TESTS))
    done = root / "opt/complete"
    if done.is_file() and done.read_text() == "\n".join(pins):
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    say(f"Debian {RELEASE} for arm64")
    include = f"--include={','.join(DEBIAN)}"
    _run(["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", include, RELEASE, str(root)])
    say("wheels for aarch64")
    wheels = root / "opt/wheels"
    platforms = [part for glibc in _GLIBC for part in ("--platform", f"manylinux_{glibc}_aarch64")]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", *platforms, "--platform", "manylinux2014_aarch64"]
    _run([*pip, "--python-version", PYTHON, "--implementation", "cp", "--dest", str(wheels), *pins])
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "opt/site")
    shutil.rmtree(wheels)
    done.write_text("\n".join(pins))
    return root


def _pins(constraints: Path, names: Sequence[str]) -> list[str]:
    lines = [line.strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    versions = {line.partition("==")[0].lower(): line for line in lines if "==" in line}
    if missing := [name for name in names if name.lower() not in versions]:
        raise SetUpError(f"{constraints}: expected a version of {', '.join(missing)}, found none")
    return [versions[name.lower()] for name in names]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise SetUpError(f"{command[0]} failed with exit code {done.returncode}: {' / '.join(told)}")
