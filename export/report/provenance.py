"""Provenance of the files: command, machine, rewrites, search, and digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from export.measure.inference import BEFORE_SEARCH, Run
from export.report.conclusion import Conclusion
from export.report.evidence import Evidence
from export.report.number_formats import decibels, milliseconds, percent, shorten
from export.report.quantized_layers import QuantizedLayers
from export.report.section import Results, Section
from runtime.cpu import available_cores, cpu_kind, cpu_name, has_vnni
from runtime.text import format_count


@dataclass(frozen=True, kw_only=True)
class Provenance(Section):
    """Facts about the run that made the files."""

    made: Mapping[str, str]  # date (UTC) and, from a command line, command
    passes: Mapping[str, int]  # rewrite → places changed
    reference: str  # the model that the float32 file must equal: "torch", "the original ONNX"
    parity: float  # largest difference of a logit from the reference, divided by the largest logit
    search: Mapping[str, Any] = field(default_factory=dict)  # layers that returned to float32, and their cost
    template = "provenance.j2"

    @classmethod
    def measure(cls, run: Run) -> Provenance:
        """Collect the facts."""
        command = {"command": run.options.command} if run.options.command else {}
        return cls(
            made={"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **command},
            passes=run.source.exported.passes,
            reference=run.source.reference_name,
            parity=run.parity,
            search=_find_search(run),
        )

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the facts."""
        return {
            "made": dict(self.made),
            "passes": dict(self.passes),
            "parity": {"reference": self.reference, "difference": self.parity},
            **({"search": dict(self.search)} if self.search else {}),
        }

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the parity and what a search found."""
        tried = self.search.get("merging")
        return [
            f"float32 equals {self.reference} to {self.parity:.0e} of the largest logit",
            *([self._say_search(results)] if self.search else []),
            *([say_no_merging(tried)] if tried and not tried["merged_per_block"] else []),
        ]

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the command, the layers of INT8, the rewrites and the facts in groups."""
        layers = results.get(QuantizedLayers).counts
        difference = {"largest difference": f"{self.parity:.1e} of the largest logit"}
        return {
            "command": self.made.get("command", ""),
            "layers": "" if layers is None else layers.to_text(),
            "passes": {name: count for name, count in self.passes.items() if count},
            "facts": {
                "Run": {"date": self.made["date"], "producer": results.producer},
                "Model": results.source,
                "Calibrated on": results.get(Evidence).calibration,
                "Within the budget": self._describe_search(results) if self.search else {},
                "Measured on": results.evaluation,
                f"float32 against {self.reference}": difference,
                "Measured with": results.environment,
            },
        }

    def _say_search(self, results: Results) -> str:
        names = [layer["name"] for layer in self.search["returned_to_float"]]
        start = f"search: on {format_count(self.search['images'], 'image')} of its own"
        if results.get(Conclusion).status == "not judged":
            return f"{start}; its result cannot be judged, see limits"
        if not names:
            return f"{start}, limits met with every planned layer in int8"
        before, after = self._list_medians(results)
        return f"{start}, limits met with {shorten(names)} in float32, {before} → {after} per image"

    def _describe_search(self, results: Results) -> dict[str, Any]:
        search = self.search
        before, after = self._list_medians(results)
        returned = [f"{each['name']} ({decibels(each['sqnr'])})" for each in search["returned_to_float"]]
        return {
            "searched on images": search["images"],
            "agreement before": percent(search["before"]["agreement"]),
            "agreement after": percent(search["after"]["agreement"]),
            "returned to float": ", ".join(returned) or "nothing",
            "latency before": before,
            "latency after": after,
        }

    def _list_medians(self, results: Results) -> tuple[str, str]:
        """Return the latency of INT8 before and after the search."""
        (int8,) = [each for each in results.variants if each.variant == "int8"]
        return milliseconds(self.search["latency_ms_before"]["median"]), milliseconds(int8.latency["median"])


def say_no_merging(tried: Mapping[str, Any]) -> str:
    """Say why a search merges no token, from its field `merging`."""
    if not tried["trials"]:
        return "token merging: none, dense int8 itself misses the limits that merging must keep"
    least = min(tried["trials"], key=lambda trial: trial["merged"])
    return f"token merging: none, {least['merged']} per block is too much: {'; '.join(least['misses'])}"


def name_producer() -> str:
    """Return the name and the version that are written into the files."""
    try:
        return f"vit-edge {version('vit-edge')}"
    except PackageNotFoundError:  # a checkout that is not installed
        return "vit-edge"


def describe_environment() -> dict[str, Any]:
    """Return the CPU and the versions of the installed packages, as JSON values."""
    packages = {}
    for name in ("onnxruntime", "torch", "onnx", "numpy", "pillow"):
        with suppress(PackageNotFoundError):  # an ONNX model needs no torch
            packages[name] = version(name)
    cpu = {"cpu": cpu_name(), "cpu_kind": cpu_kind(), "vnni": has_vnni(), "cores": available_cores()}
    return {**cpu, "packages": packages}


def _find_search(run: Run) -> dict[str, Any]:
    for each in run.variants:
        if each.search is not None:
            before = run.latency.get(BEFORE_SEARCH, run.latency[each.variant])
            return {**each.search.to_dict(), "latency_ms_before": dict(before)}
    return {}
