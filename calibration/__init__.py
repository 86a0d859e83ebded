"""Static INT8 quantization: float32 ONNX in, INT8 ONNX out. No torch here.

    import onnx_ir as ir
    from calibration import quantize

    int8 = quantize(ir.load("model.onnx"), batches, target="any-cpu")  # batches of uint8 [N, H, W, 3]
    ir.save(int8.model, "model.int8.onnx")

The public names are imported when they are first used: `plan` needs neither ONNX nor ONNX Runtime. Files in
reading order:

- graph/: edit an ONNX graph, find its quantizable layers, open sessions of it
- plan.py: what was decided, as plain data; plan.json
- observe.py: statistics of activations over the calibration images
- weights.py: int8 weights, one scale per output channel
- ranges.py: rules for the range of a tensor
- balance.py: scales moved from activations into weights
- split.py: a few hidden features of an MLP multiplied in float
- trial.py: error of a choice in the output of a layer
- decide.py: from statistics to a plan
- token_merging/: an approximation that a plan can ask for
- write.py: the plan into the graph, checked
- correct.py: the biases of a plan, one linear after the other
- measure/: distance from float, and the kernels that ONNX Runtime runs
- search.py: the fastest plan within a budget
- quantize_model.py: all of it in one call
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.graph.edit import GraphError
    from calibration.measure.drift import Drift, measure_drift
    from calibration.measure.verify import FallbackError
    from calibration.plan import PlanError, QuantizationPlan, read_plan
    from calibration.quantize_model import QuantizedModel, apply_plan, quantize
    from calibration.search import Budget, BudgetError, PlanSearch, search_plan
    from calibration.write import write_plan

_HOMES = {
    "graph.edit": ("GraphError",),
    "measure.drift": ("Drift", "measure_drift"),
    "measure.verify": ("FallbackError",),
    "plan": ("PlanError", "QuantizationPlan", "read_plan"),
    "quantize_model": ("QuantizedModel", "apply_plan", "quantize"),
    "search": ("Budget", "BudgetError", "PlanSearch", "search_plan"),
    "write": ("write_plan",),
}

__all__ = ["Budget", "BudgetError", "Drift", "FallbackError", "GraphError", "PlanError", "PlanSearch"]
__all__ += ["QuantizationPlan", "QuantizedModel", "apply_plan", "measure_drift", "quantize", "read_plan"]
__all__ += ["search_plan", "write_plan"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
