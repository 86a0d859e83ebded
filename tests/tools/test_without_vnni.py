"""A command that runs without AVX-512 and VNNI finds neither, and everything else that the CPU has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.devices import as_intel, without_vnni

pytestmark = [
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="needs Linux on x86_64"
    ),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in without_vnni.TOOLS), reason="needs gcc and binutils"
    ),
]

FEATURES = """
unsigned features(unsigned leaf, int which)
{
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(0));
    return which == 1 ? b : c;
}
"""
ASK = "import ctypes, sys; of = ctypes.CDLL(sys.argv[1]).features; "
ASK += "print(*(of(leaf, which) & 0xFFFFFFFF for leaf, which in ((1, 2), (7, 1), (7, 2))))"
AVX2, AVX512, VNNI = 1 << 5, 0xDC230000, 1 << 11


def ask(library: Path, **environment: str) -> list[int]:
    command = [sys.executable, "-c", ASK, str(library)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_a_changed_library_sees_a_cpu_without_avx512(tmp_path: Path) -> None:
    (tmp_path / "features.c").write_text(FEATURES)
    library, answer = tmp_path / "features.so", tmp_path / "answer.so"
    without_vnni.compile_library(tmp_path / "features.c", library)
    without_vnni.compile_library(Path(without_vnni.__file__).with_name("cpuid.c"), answer)
    shutil.copy(library, tmp_path / "whole.so")
    assert without_vnni.change(library) == 1
    assert without_vnni.change(library) == 0  # no cpuid is left
    first, second, third = ask(tmp_path / "whole.so")
    old, changed, hidden = ask(library, LD_PRELOAD=str(answer), CPUID_ANSWERS="without-vnni")
    assert changed & AVX512 == 0
    assert hidden & VNNI == 0
    assert (old, changed) == (first, second & ~AVX512)
    assert hidden & ~third == 0
    assert changed & AVX2 == second & AVX2


def test_a_command_reads_a_cpuinfo_without_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    monkeypatch.setattr(without_vnni, "PACKAGES", ())
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    script = "from runtime.cpu import cpu_kind; print(cpu_kind()); raise SystemExit(3)"
    assert without_vnni.main([sys.executable, "-c", script]) == 3
    assert capfd.readouterr().out.split() == ["x86"]


@pytest.mark.parametrize("command", [[], ["no-such-program"]])
def test_a_command_is_needed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert without_vnni.main(command) == 2
    assert "expected a command to run" in capsys.readouterr().err


def test_the_vendor_becomes_intel(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import onnxruntime as o; print({d.device.vendor for d in o.get_ep_devices()})"
    assert as_intel.main([sys.executable, "-c", script]) == 0
    assert "{'Intel'}" in capfd.readouterr().out
