"""Run the model files of every target on emulated CPUs, and compare with the CPU at hand.

Labels must be the same, the SQNR against float within 1 dB, and every INT8 linear in an integer kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.model_file.targets import CPU_TARGETS
from tools.devices.cpus import CPUS
from tools.devices.emulate import REPOSITORY, Machine, python_command
from tools.devices.engines import ENGINES, EngineError, measure_engine
from tools.devices.models import make_models
from tools.devices.root import SetUpError, expect_programs, make_root

WORK = Path("data/devices")
MOST_APART = 1.0  # dB between the SQNR on two CPUs
# Of INT8's labels: float operations differ by 1e-7 between CPUs, which moves an activation to the next level,
# and an image that lies between two classes.
MOST_LABELS_APART = 0.005
LEAST_SQNR = 35.0  # dB, of the digits
# Not here: tests that install packages, that need other packages, or that look for leaks for minutes.
TESTS = tuple(
    f"tests/runtime/{name}.py"
    for name in (
        "test_classifier",
        "test_cli",
        "images/test_preprocess",
        "test_session",
        "images/test_find_images",
        "model_file/test_artifact",
        "model_file/test_targets",
    )
)
# A thousand threads in turn and forks of threads crash QEMU; /dev/full is another device under proot.
NOT_EMULATED = "not at_any_moment and not forked and not full_disk"
# 70 seconds of 5 minutes.
SHORT = tuple(path for path in TESTS if "test_cli" not in path and "test_find_images" not in path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse(arguments)
    say = stopwatch()
    work = options.work.resolve()
    try:
        machines = make_machines(work, options.cpu, say)
        models = make_models(work / "models", CPU_TARGETS, say)
        chosen = SHORT if options.short else TESTS
        tests = start_tests(machines, chosen, work) if options.tests else None
        try:
            rows, faults = probe_all(machines, models, work / "models/images", say)
            for name in options.engine:
                rows += engine_rows(name, models, work, say)
            faults += end_tests(tests, work, say) if tests is not None else []
        finally:
            if tests is not None:
                tests.kill()
    except (SetUpError, EngineError) as error:
        print(f"devices: {error}", file=sys.stderr)
        return 1
    print(
        "\n".join(["| CPU | runtime | target | SQNR, dB | labels as float |", "|---|---|---|---|---|", *rows])
    )
    for fault in faults:
        print(f"devices: {fault}", file=sys.stderr)
    return 1 if faults else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.devices", description=__doc__)
    parser.add_argument(
        "--cpu", nargs="*", choices=tuple(CPUS), default=list(CPUS), help="which to emulate (default: all)"
    )
    parser.add_argument("--engine", nargs="*", choices=tuple(ENGINES), default=[], help="other runtimes, too")
    parser.add_argument("--tests", action="store_true", help="the runtime's tests on the last ARM64 CPU")
    parser.add_argument("--short", action="store_true", help="tests: leave out those of the command line")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="default: %(default)s")
    return parser.parse_args(arguments)


def stopwatch() -> Callable[[str], None]:
    """Return a function that prints a line with the seconds since now."""
    start = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - start:4.0f} s] {line}", file=sys.stderr, flush=True)


def make_machines(work: Path, names: Sequence[str], say: Callable[[str], None]) -> dict[str, Machine]:
    """Make the user space of the ARM64 CPUs among `names`, and a machine for each name."""
    if any(not CPUS[name].arm for name in names):
        expect_programs(("qemu-x86_64-static",))
    machines = {}
    for name in names:
        cpu = CPUS[name]
        root = make_root(work / "arm64", REPOSITORY / "constraints.txt", say) if cpu.arm else work / name
        machines[name] = Machine(cpu, root, work / name)
    return machines


def probe_all(
    machines: Mapping[str, Machine], models: Mapping[str, Path], images: Path, say: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Probe every target on the CPU at hand and on every emulated one.

    Returns:
        Rows of a table, and what is wrong, a phrase each.
    """
    rows, faults = [], []
    for target, folder in models.items():
        here = probe(None, folder, images)
        rows.append(row("this machine", here))
        faults += wrong_alone(f"{target} on this machine", here)
        for name, machine in machines.items():
            found = probe(machine, folder, images)
            say(f"{target} on {name}: {found['sqnr']:.1f} dB")
            rows.append(row(f"{name} ({machine.cpu.note})", found))
            faults += wrong_alone(f"{target} on {name}", found)
            faults += wrong_beside(f"{target} on {name}", found, here)
            if found["cpu_kind"] != machine.cpu.kind:
                faults.append(f"{name}: expected CPU kind {machine.cpu.kind}, found {found['cpu_kind']}")
    return rows, faults


def probe(machine: Machine | None, folder: Path, images: Path) -> dict[str, Any]:
    """Run tools.devices.probe on a CPU; None is the one at hand.

    Raises:
        SetUpError: when it does not come to an end there.
    """
    arguments = ["-m", "tools.devices.probe", str(folder), str(images)]
    command, environment = python_command(machine, arguments)
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SetUpError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, found: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    same = sum(a == b for a, b in zip(found["labels"], found["float_labels"], strict=True))
    engine = found.get("engine", "ONNX Runtime")
    if found.get("exact_kernels_asked"):
        engine += ", exact kernels"
    return (
        f"| {name} | {engine} | {found['target']} | {found['sqnr']:.1f} | {same} of {len(found['labels'])} |"
    )


def wrong_alone(name: str, found: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the figures of one CPU, a phrase each."""
    faults = []
    if found["sqnr"] < LEAST_SQNR:
        faults.append(f"{name}: expected an SQNR of at least {LEAST_SQNR} dB, found {found['sqnr']:.1f}")
    if found["integer"] != found["linears"] or not found["linears"]:
        faults.append(f"{name}: {found['integer']} of {found['linears']} linears in integer kernels")
    faults += [f"{name}: {verdict}" for verdict in found["checks"] if not verdict.startswith("passed: ")]
    return faults


def wrong_beside(name: str, found: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say where the figures of a CPU differ too much from those of this machine, a phrase each."""
    faults = []
    for which, share in (("labels", MOST_LABELS_APART), ("float_labels", 0.0)):
        other = sum(a != b for a, b in zip(found[which], here[which], strict=True))
        if other > share * len(here[which]):
            faults.append(f"{name}: {other} of {len(here[which])} {which} differ from this machine's")
    if abs(found["sqnr"] - here["sqnr"]) > MOST_APART:
        faults.append(f"{name}: SQNR is {found['sqnr']:.1f} dB, on this machine {here['sqnr']:.1f}")
    return faults


def engine_rows(name: str, models: Mapping[str, Path], work: Path, say: Callable[[str], None]) -> list[str]:
    """Measure another runtime with every target's file."""
    rows = []
    for folder in models.values():
        for found in measure_engine(name, folder, work):
            say(f"{found['target']} in {found['engine']}: {found['sqnr']:.1f} dB")
            rows.append(row(found["cpu"], found))
    return rows


def start_tests(machines: Mapping[str, Machine], tests: Sequence[str], work: Path) -> subprocess.Popen[str]:
    """Start the runtime's tests on the last ARM64 CPU, beside the probes; they write `tests.log`."""
    arm = [machine for machine in machines.values() if machine.cpu.arm]
    if not arm:
        raise SetUpError("expected an ARM64 CPU for --tests, found none; add --cpu cortex-a76")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", NOT_EMULATED, *tests]
    command, environment = python_command(arm[-1], arguments, children=True)
    log = (work / "tests.log").open("w")
    return subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, text=True
    )


def end_tests(tests: subprocess.Popen[str], work: Path, say: Callable[[str], None]) -> list[str]:
    """Wait for the tests; return what is wrong."""
    code = tests.wait()
    lines = (work / "tests.log").read_text().strip().splitlines()
    say(f"tests: {lines[-1] if lines else 'no output'}")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [f"tests on ARM64: {line}" for line in failed or lines[-1:]] if code else []


if __name__ == "__main__":
    os.chdir(REPOSITORY)
    sys.exit(main())
