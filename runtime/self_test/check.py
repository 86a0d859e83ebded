"""Check a device with the self-test in a model file: run its images here, compare with the answers in it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..devices import Device, DeviceError, DeviceOptions
from ..images.preprocess import Pixels
from ..loaded_model import ModelInfo, load_model
from ..model_file.artifact import FILE_NAMES, Artifact, display_name, read_artifact
from ..model_file.metadata import Variant
from ..placement import Placement
from ..writing import temporary_folder
from .answers import EQUAL, Outputs, compare_pixels, keep_columns, measure_sqnr, run_image
from .diagnose import Evidence, Fault, find_fault
from .document import SelfTest
from .thresholds import find_arithmetic, is_same_machine, min_sqnr

_PATIENCE = 20.0  # seconds, then no further image is answered: an NPU's simulator takes a minute for each
_BASELINE_RUNS = 3  # of which the first is not counted


@dataclass(frozen=True, kw_only=True)
class DeviceCheck:
    """Result of a self-test on one device; None for what was not measured."""

    device: str
    file: str  # path of the model file, or "the model" for bytes
    passed: bool
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
    latency_ms: float | None = None  # median of one image
    ratio: float | None = None  # latency of the CPU (`measure_baseline`), divided by this one
    memory: float | None = None  # MiB that this process grew by until the first answer; Linux alone
    use: str | None = None  # the line of Python that opens this file on this device

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        placement = None if self.placement is None else self.placement.to_dict()
        return asdict(replace(self, placement=None)) | {"placement": placement}


def check_model(
    model: os.PathLike[str] | str | bytes,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    options: DeviceOptions | None = None,
    baseline: float | None = None,
) -> DeviceCheck:
    """Run the self-test of a model file on a device, and name the fault where it fails.

    Args:
        model: a file, a folder or bytes, as for `Classifier`.
        device: as for `Classifier`; one that cannot be opened has failed the check.
        threads: as for `Classifier`.
        options: as for `Classifier`.
        baseline: the latency that the ratio is about, in ms; None measures it, by `measure_baseline`.

    Returns:
        What was measured, and the verdict; a device that cannot be opened is a result, too.

    Raises:
        ArtifactError: when there is no such model file, or the CPU cannot run it.
    """
    options = options or DeviceOptions()
    given = model if isinstance(model, bytes) else os.fspath(model)
    try:
        opened = _open(given, device, threads, options)
        self_test = opened.artifact.self_test
        if self_test is None:
            verdict = "no self-test in this file, of an older version or another program; export it again"
            return DeviceCheck(**opened.facts, passed=False, fault="no self-test", verdict=verdict)
        evidence, latency = _collect_evidence(opened, self_test, options)
    except DeviceError as error:
        name, verdict = display_name(given), f"not opened: {error}"
        return DeviceCheck(device=device, file=name, passed=False, fault="not opened", verdict=verdict)
    found = find_fault(evidence)
    if baseline is None:
        baseline = measure_baseline(opened.artifact.source, threads=threads)
    return DeviceCheck(
        **opened.facts,
        passed=found is None,
        fault=None if found is None else found.fault,
        verdict=_describe_success(evidence) if found is None else f"{found.fault}: {found.shown_by}",
        images=len(evidence.compared),
        preprocessing_equal=all(evidence.same_pixels),
        labels_equal=evidence.labels_equal,
        sqnr_file=evidence.sqnr,
        sqnr_float32=evidence.sqnr_float32,
        minimum=evidence.minimum,
        latency_ms=latency,
        ratio=baseline / latency,
    )


def measure_baseline(model: Path | bytes, *, threads: int | None = None) -> float:
    """Return the latency of one image on the CPU in ms: in float32 where that file is beside, else of this.

    Args:
        model: the model file.
        threads: as for `Classifier`.

    Raises:
        ArtifactError: when the file cannot be run.
    """
    floats = model.with_name(FILE_NAMES["float32"]) if isinstance(model, Path) else None
    source = floats if floats is not None and floats.is_file() else model
    options = DeviceOptions()
    info, session = load_model(source, device="cpu", threads=threads, sha256=None, options=options)
    blank, times = np.full((*info.preprocess.size, 3), 127, np.uint8), list[float]()
    for _ in range(_BASELINE_RUNS):
        start = time.perf_counter()
        run_image(session, blank, device="cpu", name=display_name(source))
        times.append(1000 * (time.perf_counter() - start))
    return median(times[1:])


def _describe_success(evidence: Evidence) -> str:
    if evidence.sqnr == EQUAL:
        return "passed: the same bits as at the export"
    return f"passed: {evidence.sqnr:.1f} dB (minimum on {evidence.arithmetic}: {evidence.minimum:.1f} dB)"


def read_kernels(profile: Path) -> Mapping[str, int]:
    """Return the kernels in a profile of one run, by operator.

    Args:
        profile: the file that ONNX Runtime wrote.
    """
    events = json.loads(profile.read_bytes())
    return Counter(event["args"]["op_name"] for event in events if "op_name" in event.get("args", {}))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model file that is open on a device, after its first run."""

    artifact: Artifact
    info: ModelInfo
    run: Callable[[Pixels], Outputs]
    kernels: Mapping[str, int]  # of the first run
    facts: Mapping[str, Any]  # fields of a DeviceCheck


def _open(model: str | bytes, device: Device, threads: int | None, options: DeviceOptions) -> _Opened:
    before, start = _read_resident_memory(), time.perf_counter()
    with temporary_folder() as folder:
        watched = replace(options, partial=True, profile=folder / "run")
        info, session = load_model(model, device=device, threads=threads, sha256=None, options=watched)
        seconds = time.perf_counter() - start
        run = partial(run_image, session, device=info.device, name=display_name(model))
        run(np.full((*info.preprocess.size, 3), 127, np.uint8))
        kernels = read_kernels(Path(session.end_profiling()))
    after = _read_resident_memory()
    artifact = read_artifact(model if info.path is None else info.path, sha256=info.sha256)
    source = "model" if info.path is None else repr(info.path)
    facts = dict(
        device=info.device,
        file=artifact.name,
        variant=info.variant,
        opened=seconds,
        placement=info.placement,
        memory=None if before is None or after is None else max(after - before, 0) / 2**20,
        use=f"{'Classifier' if info.labels else 'Embedder'}({source}, device={info.device!r})",
    )
    return _Opened(artifact=artifact, info=info, run=run, kernels=kernels, facts=facts)


def _collect_evidence(opened: _Opened, self_test: SelfTest, options: DeviceOptions) -> tuple[Evidence, float]:
    """Answer the images of a self-test; return the evidence, and the median latency of one image in ms."""
    info = opened.info
    images = [image.open() for image in self_test.images]
    pixels = [info.preprocess(image) for image in images]
    same = compare_pixels(self_test, pixels)
    rows, times, end = list[Outputs](), list[float](), time.monotonic() + _PATIENCE
    while len(rows) < len(pixels) and (not rows or time.monotonic() < end):
        start = time.perf_counter()
        rows.append(opened.run(pixels[len(rows)]))
        times.append(1000 * (time.perf_counter() - start))
    # Where another decoder reads a JPEG in another way, its answers are not compared.
    compared = [index for index in range(len(rows)) if same[index] == "equal"] or [*range(len(rows))]
    recorded, floats = (
        {name: getattr(each, which)[compared] for name, each in self_test.outputs.items()}
        for which in ("file", "float32")
    )
    outputs = keep_columns(self_test, [rows[index] for index in compared])
    every = self_test.outputs.items()
    quantization = measure_sqnr({n: a.float32 for n, a in every}, {n: a.file for n, a in every})
    arithmetic = find_arithmetic(info.device, info.variant, options, same_machine=is_same_machine(self_test))
    minimum = min_sqnr(arithmetic, info.variant, quantization)
    evidence = Evidence(
        artifact=opened.artifact,
        info=info,
        self_test=self_test,
        partial=options.partial,
        kernels=opened.kernels,
        images=images,
        pixels=pixels,
        same_pixels=[each != "different" for each in same],
        compared=compared,
        recorded=recorded,
        outputs=outputs,
        arithmetic=arithmetic,
        sqnr=measure_sqnr(recorded, outputs),
        sqnr_float32=measure_sqnr(floats, outputs),
        minimum=minimum,
        quantization=quantization,
    )
    return evidence, median(times)


def _read_resident_memory() -> int | None:
    """Return the bytes of this process that are in memory; None where the system is not Linux."""
    if sys.platform != "linux":
        return None
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
