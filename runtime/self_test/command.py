"""Command line `vit-edge check MODEL`: run the self-test of a model file on devices and print the results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..batch.options import DeviceChoice
from ..command.line import PACKAGE, divert_standard_output, run_command
from ..command.parser import REQUIRED, Parser, argument, option, options_from
from ..errors import DONE, FAILED, InputError
from ..text import make_printable

if TYPE_CHECKING:
    from ..devices import Device
    from .check import DeviceCheck

_REST = """\
The file holds images and what the exporting machine answered for them. SQNR is the ratio of signal to noise
against the answers of this file and of float32 there. Placement is the share of the multiply-adds that the
device runs. Speed is against the CPU here: in float32 where that file is beside, else with the same file.

Exit codes: 0 the device passed, 1 it failed or the file has no self-test, 2 wrong use, 130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DeviceChoice):
    """Check a device with the self-test in a model file."""

    model: Path = argument(REQUIRED, "an .onnx file, or the folder that the export wrote", metavar="MODEL")
    all: bool = option(False, "check every other device here as well, with every model file in the folder")
    threads: int | None = option(None, "CPU threads of one prediction (default: all cores)")
    json: bool = option(False, "print the results as JSON")


def main(arguments: Sequence[str] | None = None, *, prog: str) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words; None takes those of the process.
        prog: the command as it was typed.
    """
    parser = Parser(prog=prog, options=CheckOptions, first_word=PACKAGE)
    parser.add_version()
    parser.add_examples("artifacts/flowers", "artifacts/flowers --all", "model.int8.onnx --json", rest=_REST)
    options = options_from(CheckOptions, parser.parse_args(arguments))
    return run_command(parser.first_word, lambda: _run(options), extra="cpu")


def _run(options: CheckOptions) -> int:
    with divert_standard_output():
        checks = list(_check_in_turn(options))
    passed = [each for each in checks if each.passed]
    timed = [(each.latency_ms, each.use) for each in passed if each.latency_ms is not None]
    fastest = min(timed)[1] if timed else None
    if options.json:
        document = {
            "passed": checks[0].passed,
            "checks": [each.to_dict() for each in checks],
            "fastest": fastest,
        }
        print(json.dumps(document, ensure_ascii=False, indent=1))
    else:
        _print_table(checks)
        for each in checks:
            print(make_printable(f"{each.device}, {Path(each.file).name}: {each.verdict}"))
        others = "only a simulator passed" if passed else "no device passed"
        print(make_printable(f"fastest that passed: {fastest}" if fastest else others))
    return DONE if checks[0].passed else FAILED


def _check_in_turn(options: CheckOptions) -> Iterator[DeviceCheck]:
    """Yield the check of the device that was asked for, then those of all others."""
    from ..model_file.artifact import FILE_NAMES
    from ..session import available_devices
    from .check import check_model, describe_failure

    check = partial(check_model, threads=options.threads, options=options.device_options)
    asked = check(options.model, device=options.device)
    yield asked
    if not options.all:
        return
    baseline = asked.ratio and asked.latency_ms and asked.ratio * asked.latency_ms
    folder = options.model.is_dir()
    files = [options.model / name for name in FILE_NAMES.values()] if folder else [options.model]
    for device, file in product(available_devices(), filter(os.path.lexists, files)):
        if (device, Path(asked.file)) == (asked.device, file.absolute()):
            continue
        try:
            yield check(file, device=cast("Device", device), baseline=baseline)
        except InputError as error:
            yield describe_failure(str(file), device, error)


def _print_table(checks: Sequence[DeviceCheck]) -> None:
    cells = [_make_cells(each) for each in checks]
    rows = [tuple(cells[0]), *(tuple(each.values()) for each in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _make_cells(check: DeviceCheck) -> dict[str, str]:
    """Return the cells of a check by the head of their column; "-" for what was not measured."""
    share = None if check.placement is None else check.placement.find(check.device).share
    file, float32 = (
        _show(each, "equal bits" if each == 200 else "{:.1f} dB")
        for each in (check.sqnr_file, check.sqnr_float32)
    )
    return {
        "device": check.device,
        "variant": check.variant or "-",
        "opened": _show(check.opened, "{:.1f} s"),
        "placement": _show(share, "{:.1%}"),
        "pixels": {None: "-", True: "equal", False: "different"}[check.preprocessing_equal],
        "labels": _show(check.labels_equal, f"{{}} of {check.images}"),
        "SQNR file": file,
        "float32": float32,
        "latency": "simulated" if check.simulated else _show(check.latency_ms, "{:.2f} ms"),
        "speed": _show(check.ratio, "{:.2f}x"),
        "memory": _show(check.memory, "{:.0f} MiB"),
    }


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
