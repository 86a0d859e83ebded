"""Where the nodes of each variant ran while it was measured, and its multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.measure.inference import Run
from export.report.section import Results, Section
from runtime.placement import COUNTS, Placement, describe_placement


@dataclass(frozen=True, kw_only=True)
class NodePlacement(Section):
    """Placement and multiply-adds; the latter go into the metadata, so that a device can tell its share."""

    multiply_adds: Mapping[str, Mapping[str, int]]  # of one image, by variant and name of the node
    placement: Mapping[str, Placement | None]  # by variant; None where this ONNX Runtime cannot say
    folded = True
    template = "node_placement.j2"

    @classmethod
    def measure(cls, run: Run) -> NodePlacement:
        """Take both from the run."""
        return cls(multiply_adds=run.multiply_adds, placement=run.placement)

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the multiply-adds of each node."""
        return {COUNTS: dict(self.multiply_adds[variant])}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return placement and sum of the multiply-adds, in the fields of each model."""
        models = {}
        for name, counts in self.multiply_adds.items():
            placement = self.placement[name]
            found = None if placement is None else placement.to_dict()
            models[name] = {COUNTS: sum(counts.values()), "placement": found}
        return {"models": models}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return where each variant ran."""
        return [f"{variant} ran on {text}" for variant, text in self.ran_on.items()]

    @property
    def ran_on(self) -> dict[str, str]:
        """The placement and the multiply-adds in words, by variant."""
        return {
            name: f"{describe_placement(self.placement[name])}; {sum(counts.values()) / 1e9:.3g} billion "
            "multiply-adds per image"
            for name, counts in self.multiply_adds.items()
        }
