"""Layers of INT8: which are quantized, the drift of each one's output, and the kernels that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibration.measure.per_layer import measure_layer_drift
from calibration.write import write_plan
from export.measure.inference import Run
from export.report.number_formats import decibels, shorten
from export.report.section import Results, Section
from runtime.self_test.document import FLOAT_KERNELS, INTEGER_KERNELS
from runtime.text import format_count

WORST = 5


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """Number of the layers that are quantized, all in integer kernels, and names of the others."""

    int8_linears: int
    float_linears: tuple[str, ...]  # by the plan, or since no rewrite made them quantizable
    int8_products: int
    float_products: tuple[str, ...]
    on_npu: str = ""  # of target "npu": where its operators run

    def to_text(self) -> str:
        """Return a sentence: "26 linear layers, 21 in INT8 (all in integer kernels), 5 stay float32: …"."""
        kernels = not self.on_npu
        linears = _count(self.int8_linears, self.float_linears, "linear layer", kernels=kernels)
        products = _count(self.int8_products, self.float_products, "attention product", kernels=kernels)
        return "; ".join(filter(None, (linears, products, self.on_npu)))


@dataclass(frozen=True, kw_only=True)
class QuantizedLayers(Section):
    """Figures of the layers of INT8; empty without it."""

    counts: LayerCounts | None = None
    sqnr: Mapping[str, float] = field(default_factory=dict)  # dB of a linear layer's output, in graph order
    kernels: Mapping[str, int] = field(default_factory=dict)  # operator counts of the optimized graph
    integer_kernels: str = ""  # "74 of 74 linears and 24 of 24 products in integer kernels"
    folded = True
    template = "quantized_layers.j2"

    @classmethod
    def measure(cls, run: Run) -> QuantizedLayers:
        """Count the layers by precision, and compare the output of each with float32's on a few images."""
        if run.int8 is None or run.int8.quantized is None:
            return cls()
        source, quantized, model = run.source, run.int8.quantized, run.int8.model
        plan, kernels = quantized.plan, quantized.kernels
        linears = {name: each.precision == "int8" for name, each in plan.linears.items()}
        products = {name: each.precision == "int8" for name, each in plan.products.items()}
        counts = LayerCounts(
            int8_linears=sum(linears.values()),
            float_linears=(*source.float_layers, *(name for name, int8 in linears.items() if not int8)),
            int8_products=sum(products.values()),
            float_products=tuple(name for name, int8 in products.items() if not int8),
            on_npu=kernels.on_npu,
        )
        if run.int8.merges:  # rows of merged tokens have no counterpart in float32: compare dense INT8
            plan = replace(plan, merging={})
            model = write_plan(source.int8_graph, plan)
        feed = run.batches(run.few_images())
        return cls(
            counts=counts,
            sqnr=measure_layer_drift(source.exported.model, model, plan, feed, threads=run.options.threads),
            kernels=kernels.counts if kernels else {},
            integer_kernels=kernels.summary() if kernels else "",
        )

    def worst(self) -> list[tuple[str, float]]:
        """Return the linear layers whose output is furthest from float32, worst first."""
        return sorted(self.sqnr.items(), key=lambda item: item[1])[:WORST]

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the counts, the layers in float32, and the fields of the INT8 model."""
        if (counts := self.counts) is None:
            return {"float_layers": []}
        int8: dict[str, Any] = {}
        if self.kernels:
            int8 = {"kernels": dict(self.kernels), "integer_kernels": self.integer_kernels}
        if self.sqnr:
            int8["layers_sqnr_db"] = {name: round(value, 2) for name, value in self.sqnr.items()}
        linears = {"int8": counts.int8_linears, "float32": len(counts.float_linears)}
        products = {"int8": counts.int8_products, "float32": len(counts.float_products)}
        return {
            "layers": {"linears": linears, "products": products},
            "float_layers": [*counts.float_linears, *counts.float_products],
            "models": {"int8": int8},
        }

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the sentence that adds up the layers."""
        return [] if self.counts is None else [f"int8: {self.counts.to_text()}"]

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the worst layers and the kernels; integer products first, then float ones, then the rest."""
        kinds = {
            name: 0 if name in INTEGER_KERNELS else 1 if name in FLOAT_KERNELS else 2 for name in self.kernels
        }
        order = sorted(kinds, key=lambda name: (kinds[name], -self.kernels[name], name))
        styles = ("integer", "product", "other")
        return {
            "worst": [(name, decibels(value)) for name, value in self.worst()],
            "kernels": [(name, self.kernels[name], styles[kinds[name]]) for name in order],
        }


def _count(int8: int, in_float: Sequence[str], noun: str, *, kernels: bool) -> str:
    total = format_count(int8 + len(in_float), noun)
    if not int8 and not in_float:
        return ""
    if not in_float:
        return f"{total}, all in INT8" + (" and in integer kernels" if kernels else "")
    if not int8:
        return f"{total}, all in float32"
    stay = "stays" if len(in_float) == 1 else "stay"
    kept = f"{len(in_float)} {stay} float32: {shorten(in_float)}"
    return f"{total}, {int8} in INT8{' (all in integer kernels)' if kernels else ''}, {kept}"
