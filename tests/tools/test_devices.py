"""The check on emulated CPUs: what it tells programs about the CPU, and what it calls a fault."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Metadata, Preprocess
from runtime.cpu import _linux_flags
from tools.devices import __main__ as devices
from tools.devices import engines
from tools.devices import root as root_module
from tools.devices.cpus import CPUS, write_system_files
from tools.devices.emulate import REPOSITORY, Machine, python_command
from tools.devices.engines import ENGINES, EngineError, measure_engine
from tools.devices.root import SetUpError, _pins, expect_programs

GOOD: Mapping[str, Any] = {
    "checks": ["passed: the same bits as at the export"],
    "target": "any-cpu",
    "sqnr": 41.0,
    "labels": ["1", "2"],
    "float_labels": ["1", "2"],
    "linears": 3,
    "integer": 3,
}


@pytest.mark.parametrize(
    ("name", "part", "dot_product"), [("cortex-a72", "0xd08", False), ("cortex-a76", "0xd0b", True)]
)
def test_an_arm_cpu_says_who_it_is(tmp_path: Path, name: str, part: str, dot_product: bool) -> None:
    write_system_files(tmp_path, CPUS[name])
    text = (tmp_path / "proc/cpuinfo").read_text()
    assert text.count("processor") == text.count(f"CPU part\t: {part}\n") == 2
    assert ("asimddp" in text) == dot_product
    assert "vnni" not in text
    midr = (tmp_path / "sys/devices/system/cpu/cpu1/regs/identification/midr_el1").read_text()
    assert f"{int(midr, 16) >> 4 & 0xFFF:#x}" == part


def test_an_x86_cpu_loses_what_the_emulation_lacks(tmp_path: Path) -> None:
    host = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni avx_vnni amx_int8 sse\nbugs\t: none\n"
    write_system_files(tmp_path, CPUS["haswell"], host_cpuinfo=host)
    assert _linux_flags((tmp_path / "proc/cpuinfo").read_text()) == ["fpu", "avx2", "sse"]


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="apt-get install qemu-user-static")
def test_python_on_an_x86_cpu_without_vnni(tmp_path: Path) -> None:
    machine = Machine(CPUS["haswell"], tmp_path, tmp_path)
    script = "from runtime.cpu import cpu_kind; from runtime.model_file.targets import choose_target; "
    script += "print(cpu_kind(), choose_target(cpu_kind()))"
    command, environment = python_command(machine, ["-c", script])
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split() == ["x86", "any-cpu"], done.stderr


def test_an_arm_program_sees_debian_and_the_cpu_and_only_tests_need_proot(tmp_path: Path) -> None:
    for name in ("usr", "opt", "work"):
        (tmp_path / "arm64" / name).mkdir(parents=True)
    machine = Machine(CPUS["cortex-a76"], tmp_path / "arm64", tmp_path / "a76")
    command, environment = python_command(machine, ["-m", "x"])
    assert command[:3] == ["qemu-aarch64-static", "-L", str(tmp_path / "a76")]
    assert environment["QEMU_CPU"] == "cortex-a76"
    assert (tmp_path / "a76/usr").resolve() == tmp_path / "arm64/usr"
    assert not (tmp_path / "a76/work").exists()  # where proot leaves empty folders in place of the checkout's
    command, _ = python_command(machine, ["-m", "x"], children=True)
    assert command[0] == "proot"
    assert f"{tmp_path}/a76/proc/cpuinfo:/proc/cpuinfo" in command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"sqnr": 34.9}, "expected an SQNR of at least 35.0 dB, found 34.9"),
        ({"integer": 2}, "2 of 3 linears in integer kernels"),
        ({"integer": 0, "linears": 0}, "0 of 0 linears"),
        ({"checks": ["passed: 50.1 dB", "weights: 10.0 dB"]}, "here: weights: 10.0 dB"),
    ],
)
def test_what_is_wrong_on_one_cpu(change: dict[str, Any], message: str | None) -> None:
    faults = devices.wrong_alone("here", {**GOOD, **change})
    assert bool(faults) == (message is not None)
    assert message is None or message in faults[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sqnr": 41.9}, None),
        ({"sqnr": 39.9}, "SQNR is 39.9 dB, on this machine 41.0"),
        ({"sqnr": 42.1}, "SQNR is 42.1"),
        ({"labels": ["1", "3"]}, "1 of 2 labels differ"),
        ({"float_labels": ["3", "3"]}, "2 of 2 float_labels differ"),
    ],
)
def test_what_is_wrong_beside_this_machine(change: dict[str, Any], message: str | None) -> None:
    faults = devices.wrong_beside("there", {**GOOD, **change}, GOOD)
    assert bool(faults) == (message is not None)
    assert message is None or message in faults[0]


@pytest.mark.parametrize(("labels", "differ"), [("labels", 2), ("float_labels", 1)])
def test_one_int8_label_of_200_may_differ_between_cpus(labels: str, differ: int) -> None:
    """An image between two classes; of float32 none may."""
    here = {**GOOD, "labels": ["1"] * 200, "float_labels": ["1"] * 200}
    for count in (differ - 1, differ):
        there = {**here, labels: ["2"] * count + ["1"] * (200 - count)}
        assert bool(devices.wrong_beside("there", there, here)) == (count == differ)


def test_a_row_of_the_table() -> None:
    found = {**GOOD, "labels": ["1", "1"], "exact_kernels_asked": True}
    assert devices.row("a CPU", found) == "| a CPU | ONNX Runtime, exact kernels | any-cpu | 41.0 | 1 of 2 |"


def test_what_is_missing_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        root_module.shutil, "which", lambda name: None if name != "proot" else "/usr/bin/proot"
    )
    with pytest.raises(SetUpError, match=r"apt-get install mmdebstrap qemu-user-static$"):
        expect_programs()


def test_a_package_without_a_pinned_version(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("# note\nNumPy==2.0\n")
    assert _pins(file, ["numpy"]) == ["NumPy==2.0"]
    with pytest.raises(SetUpError, match="expected a version of pillow, found none"):
        _pins(file, ["numpy", "pillow"])


def test_every_package_of_the_user_space_is_pinned() -> None:
    names = (*root_module.RUNTIME, *root_module.CHECKS, *root_module.TESTS)
    assert len(_pins(REPOSITORY / "constraints.txt", names)) == len(names)


def test_tests_that_the_check_runs_exist() -> None:
    assert all((REPOSITORY / path).is_file() for path in devices.TESTS)
    assert set(devices.SHORT) < set(devices.TESTS)


@pytest.mark.parametrize("name", ["node", "wasm"])
def test_an_engine_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.devices.engines.shutil.which", lambda program: None)
    with pytest.raises(EngineError, match="apt-get install nodejs npm"):
        ENGINES[name](tmp_path)


def test_figures_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of two files become a distance in dB and labels."""
    (tmp_path / "images").mkdir()
    folder = tmp_path / "any-cpu"
    folder.mkdir()
    metadata = Metadata(variant="int8", preprocess=Preprocess(size=(8, 8)), labels=("r", "g"))
    monkeypatch.setattr(engines, "read_metadata", lambda path: metadata)
    logits = {"model.onnx": [[10.0, 0.0], [0.0, 10.0]], "model.int8.onnx": [[10.0, 1.0], [0.0, 9.0]]}
    monkeypatch.setattr(
        engines, "_logits", lambda way, model, *rest: np.array(logits[model.name], np.float32)
    )
    monkeypatch.setattr(
        engines, "ENGINES", {"x": lambda work: [engines.Way(cpu="c", engine="e", command=[])]}
    )
    (found,) = measure_engine("x", folder, tmp_path)
    assert found["sqnr"] == pytest.approx(20.0)
    assert (found["labels"], found["target"]) == ([0, 1], "any-cpu")
