"""Check a device with the self-test in a model file: run its images here, compare with the answers in it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..devices import Device, DeviceError, DeviceOptions
from ..images.preprocess import Pixels
from ..load_model import ModelInfo, load_model
from ..model_file.artifact import FILE_NAMES, display_name, read_artifact
from ..model_file.metadata import Variant
from ..placement import Placement
from ..plugins import is_simulated
from ..writing import DiskError, temporary_folder
from .answers import EQUAL, Outputs, run_image
from .diagnose import Evidence, Fault, find_fault
from .thresholds import is_same_machine

_PATIENCE = 20.0  # seconds, then no further image is answered: an NPU's simulator takes a minute for each
_NO_SELF_TEST = "no self-test in this file, of an older version or another program; export it again"


@dataclass(frozen=True, kw_only=True)
class DeviceCheck:
    """Result of a self-test on one device; None for what was not measured."""

    device: str
    file: str  # path of the model file, or "the model" for bytes
    passed: bool = False
    fault: Fault | None  # the first that was found
    verdict: str  # one line
    variant: Variant | None = None
    opened: float | None = None  # seconds to check and open the file
    placement: Placement | None = None
    images: int = 0  # whose answers were compared
    preprocessing_equal: bool | None = None  # the pixels are those of the exporting machine
    labels_equal: int | None = None  # images whose best class is that of the exporting machine
    sqnr_file: float | None = None  # dB against the answers of this file there; 200: the same bits
    sqnr_float32: float | None = None  # dB against the answers of float32 there
    minimum: float | None = None  # dB, of `sqnr_file`
    simulated: bool = False  # by Qualcomm's simulator of an NPU, whose time is not that of an NPU
    latency_ms: float | None = None  # median of one image; None in a simulator
    ratio: float | None = None  # latency on the CPU (float32 where that file is beside), divided by this
    memory: float | None = None  # MiB that this process grew by until the first answer; Linux alone
    use: str | None = None  # the line of Python that opens this file on this device

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def check_model(
    model: os.PathLike[str] | str | bytes,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    options: DeviceOptions | None = None,
    baseline: float | None = None,
    scratch: Path | None = None,
) -> DeviceCheck:
    """Run the self-test of a model file on a device, and name the fault where it fails.

    Args:
        model: a file, a folder or bytes, as for `Classifier`.
        device: as for `Classifier`; one that cannot be opened has failed the check.
        threads: as for `Classifier`.
        options: as for `Classifier`.
        baseline: the latency that the ratio is about, in ms; None measures it on the CPU.
        scratch: a folder for temporary files; None for the system's.

    Returns:
        What was measured, and the verdict; a device that cannot be opened is a result, too.

    Raises:
        ArtifactError: when there is no such model file, or the CPU cannot run it.
    """
    given = model if isinstance(model, bytes) else os.fspath(model)
    try:
        checked = _check(given, device, threads, options or DeviceOptions(), scratch)
    except DeviceError as error:
        return describe_failure(display_name(given), device, error)
    if checked.latency_ms is None:
        return checked
    if baseline is None:
        baseline = _measure_baseline(given if isinstance(given, bytes) else Path(checked.file), threads)
    return replace(checked, ratio=baseline / checked.latency_ms)


def describe_failure(file: str, device: str, error: Exception) -> DeviceCheck:
    """Return the result for a file that cannot be opened on a device."""
    return DeviceCheck(device=device, file=file, fault="not opened", verdict=f"not opened: {error}")


def _check(
    model: str | bytes, device: Device, threads: int | None, options: DeviceOptions, scratch: Path | None
) -> DeviceCheck:
    before, start = _read_resident_memory(), time.perf_counter()
    with temporary_folder(scratch) as folder:
        watched = replace(options, partial=True, profile=folder / "run")
        info, session = load_model(model, device=device, threads=threads, sha256=None, options=watched)
        seconds = time.perf_counter() - start
        run = partial(run_image, session, device=info.device, name=display_name(model))
        run(_make_blank(info))
        events = _read_profile(Path(session.end_profiling()))
    after = _read_resident_memory()
    artifact = read_artifact(model if info.path is None else info.path, sha256=info.sha256)
    source = "model" if info.path is None else repr(info.path)
    checked = DeviceCheck(
        device=info.device,
        file=artifact.name,
        fault="no self-test",
        verdict=_NO_SELF_TEST,
        variant=info.variant,
        opened=seconds,
        placement=info.placement,
        memory=None if before is None or after is None else max(after - before, 0),
        simulated=is_simulated(info.device),
        use=f"{'Classifier' if info.labels else 'Embedder'}({source}, device={info.device!r})",
    )
    if (test := artifact.self_test) is None:
        return checked
    pixels = [info.preprocess(image.open()) for image in test.images]
    rows, times = _answer(run, pixels)
    evidence = Evidence(
        artifact=artifact,
        info=info,
        self_test=test,
        options=options,
        kernels=Counter(each["args"]["op_name"] for each in events if "op_name" in each.get("args", {})),
        same_machine=is_same_machine(test),
        simulated=checked.simulated,
        pixels=pixels,
        rows=rows,
    )
    return _judge(replace(checked, latency_ms=None if checked.simulated else median(times)), evidence)


def _read_profile(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:  # ONNX Runtime says nothing of a full disk
        raise DiskError(
            f"{path.parent}: expected the profile of a run, found a part; free some space"
        ) from error


def _judge(checked: DeviceCheck, evidence: Evidence) -> DeviceCheck:
    equal = evidence.sqnr == EQUAL
    success = "the same bits as at the export" if equal else evidence.describe_sqnr()
    fault, shown_by = find_fault(evidence) or (None, success)
    return replace(
        checked,
        passed=fault is None,
        fault=fault,
        verdict=f"{fault or 'passed'}: {shown_by}",
        images=len(evidence.compared),
        preprocessing_equal=not evidence.wrong_pixels,
        labels_equal=evidence.labels_equal,
        sqnr_file=evidence.sqnr,
        sqnr_float32=evidence.sqnr_float32,
        minimum=evidence.minimum,
    )


def _answer(run: Callable[[Pixels], Outputs], images: Iterable[Pixels]) -> tuple[list[Outputs], list[float]]:
    """Return the outputs for images, one per run, and the ms of each; one image at least."""
    rows, times, end = list[Outputs](), list[float](), time.monotonic() + _PATIENCE
    for image in images:
        start = time.perf_counter()
        rows.append(run(image))
        times.append(1000 * (time.perf_counter() - start))
        if time.monotonic() >= end:
            break
    return rows, times


def _measure_baseline(model: Path | bytes, threads: int | None) -> float:
    """Return the ms of one image on the CPU: in float32 where that file is beside, else of this file."""
    floats = model.with_name(FILE_NAMES["float32"]) if isinstance(model, Path) else None
    source = floats if floats is not None and floats.is_file() else model
    options = DeviceOptions()
    info, session = load_model(source, device="cpu", threads=threads, sha256=None, options=options)
    run = partial(run_image, session, device="cpu", name=display_name(source))
    return median(_answer(run, [_make_blank(info)] * 3)[1][-2:])  # the first run is slower


def _make_blank(info: ModelInfo) -> Pixels:
    return np.full((*info.preprocess.size, 3), 127, np.uint8)


def _read_resident_memory() -> float | None:
    """Return the MiB of this process that are in memory; None where the system is not Linux."""
    if sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
