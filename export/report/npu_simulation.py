"""Drift of the files for an NPU in Qualcomm's simulator, beside that of the same files on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibration.graph.edit import Array
from calibration.measure.drift import sqnr
from export.measure.inference import Run
from export.measure.simulator import CHIP, Simulation, find_obstacle, simulate
from export.report.number_formats import decibels
from export.report.section import Results, Section
from runtime.placement import Placement, describe_placement
from runtime.text import format_count

MINUTES = 5.0  # of simulation, where the export writes a file for an NPU
NOTE = "times in a simulator say nothing about an NPU"


@dataclass(frozen=True, kw_only=True)
class SimulatedDrift:
    """One file in the simulator; SQNR in dB, of the logits (of the embedding, without classes)."""

    sqnr: float  # against float32 on the CPU
    cpu_sqnr: float  # of the same file on the CPU, against float32, on the same images
    between_sqnr: float  # of the file in the simulator against the file on the CPU
    same_label: int | None  # images whose best class is that of float32; None without classes
    placement: Placement | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of report.json."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class NpuSimulation(Section):
    """The files for an NPU in the simulator, or why none of them ran there."""

    obstacle: str | None  # why nothing was simulated
    images: int = 0  # the same for each file
    minutes: float = 0.0  # that the simulation was given
    seconds: float = 0.0  # that the images took, for all files
    files: Mapping[str, SimulatedDrift] = field(default_factory=dict)  # by variant
    failures: Mapping[str, str] = field(default_factory=dict)  # by variant
    chip = CHIP
    template = "npu_simulation.j2"

    @classmethod
    def measure(cls, run: Run) -> NpuSimulation | None:
        """Simulate the file for an NPU and float16; None where neither is written, or nobody asks for it."""
        npu = any(each.target == "npu" for each in run.variants)
        minutes = run.options.npu_minutes
        minutes = (MINUTES if npu else 0.0) if minutes is None else minutes
        files = [each for each in run.variants if each.target == "npu" or each.variant == "float16"]
        if not files or not (npu or minutes):
            return None
        obstacle = find_obstacle() if minutes else "--npu-minutes 0"
        if obstacle is not None:
            return cls(obstacle=obstacle)
        found = simulate(run, files, minutes)
        return cls(
            obstacle=None,
            images=len(found.images),
            minutes=minutes,
            seconds=found.seconds,
            files={name: _compare(run, found, name) for name in found.outputs},
            failures=found.failures,
        )

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the drift in the simulator."""
        if (found := self.files.get(variant)) is None:
            return {}
        fields = {"sqnr": found.sqnr, "same_label": found.same_label}
        return {"npu": {"simulated_chip": self.chip, "images": self.images, **fields}}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the figures of each file."""
        fields = {name: getattr(self, name) for name in ("obstacle", "images", "minutes", "seconds")}
        models = {name: found.to_dict() for name, found in self.files.items()}
        return {
            "npu": {"simulated_chip": self.chip, **fields, "models": models, "failures": dict(self.failures)}
        }

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return a line for each file."""
        if self.obstacle is not None:
            return [
                f"NPU: not simulated ({self.obstacle}); the figures of each file are those on this CPU, "
                "which computes the same steps of quantization"
            ]
        return [
            f"simulated NPU ({self.chip}), {format_count(self.images, 'image')} ({NOTE}):",
            *(f"  {name}: {self.describe(name)}" for name in self.files),
            *(f"  {name}: cannot run there: {reason}" for name, reason in self.failures.items()),
        ]

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return where each file ran, in words."""
        return {"placements": [describe_placement(each.placement) for each in self.files.values()]}

    def describe(self, variant: str) -> str:
        """Return the figures of a file in words."""
        found = self.files[variant]
        same = "" if found.same_label is None else f"same label as float32 on {found.same_label}, "
        return (
            f"{same}SQNR {decibels(found.sqnr)} (on this CPU {decibels(found.cpu_sqnr)}, between the two "
            f"{decibels(found.between_sqnr)}); {describe_placement(found.placement)}"
        )


def _compare(run: Run, found: Simulation, name: str) -> SimulatedDrift:
    rows, there = list(found.images), found.outputs[name]
    by_variant = run.logits if run.source.labels else run.embeddings
    exact, here = (by_variant[each][rows] for each in ("float32", name))
    return SimulatedDrift(
        sqnr=sqnr(exact, there),
        cpu_sqnr=sqnr(exact, here),
        between_sqnr=sqnr(here, there),
        same_label=_count_same(exact, there) if run.source.labels else None,
        placement=found.placement[name],
    )


def _count_same(exact: Array, there: Array) -> int:
    return int((exact.argmax(axis=1) == there.argmax(axis=1)).sum())
