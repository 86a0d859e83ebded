"""What calibration decided, as plain data: it can be saved, read, compared, edited and written into a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

PLAN_VERSION = 1
Precision = Literal["int8", "float32"]
Target = Literal["vnni", "avx2", "arm64"]


class PlanError(ValueError):
    """A plan that cannot be read, or that does not fit the graph."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Affine uint8: a number x is stored as clip(round(x / scale) + zero_point, 0, 255)."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not self.scale > 0 or not 0 <= self.zero_point <= 255:
            raise PlanError(
                f"expected scale > 0 and zero_point in 0..255, found {self.scale}, {self.zero_point}"
            )

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """The finest range that holds low, high and zero, with zero stored exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-12)
        return cls(scale=_float32(scale), zero_point=min(255, max(0, round(-low / scale))))


PROBABILITY = Range(scale=1 / 255, zero_point=0)  # a softmax output: 0 to 1 whatever the picture


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """One linear layer. Its weight is int8, symmetric, one scale an output feature; its sums are int32."""

    precision: Precision
    input: Range | None = None  # None for float32, and for the pixels, which are 8-bit already


@dataclass(frozen=True, kw_only=True)
class ProductPlan:
    """One product of attention: both of its inputs in uint8, or both in float."""

    precision: Precision
    left: Range | None = None
    right: Range | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """For each linear layer and each attention product of a graph: int8 with which ranges, or float32.

    `target` names the instruction set that the weights are made for: without VNNI ("avx2"), pairs of
    weights are kept small enough that the 16-bit sums of the kernel cannot saturate.
    """

    target: Target
    linears: Mapping[str, LinearPlan] = field(default_factory=dict)
    products: Mapping[str, ProductPlan] = field(default_factory=dict)

    def quantized(self) -> list[str]:
        """The names of the linears in int8."""
        return [name for name, linear in self.linears.items() if linear.precision == "int8"]

    def to_json(self) -> str:
        """The same plan is the same text, byte for byte; one line a layer."""
        document = {"format": "vit-edge plan", "version": PLAN_VERSION, "target": self.target}
        sections = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
        for key, entries in (("linears", self.linears), ("products", self.products)):
            lines = [
                f"  {json.dumps(name)}: {json.dumps(_without_none(asdict(e)))}" for name, e in entries.items()
            ]
            sections.append(f' "{key}": {{\n' + ",\n".join(lines) + "\n }")
        return "{\n" + ",\n".join(sections) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> QuantizationPlan:
        """Raises PlanError, which names the entry, for anything that is not a plan of this version."""
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"expected a plan in JSON, found {error}") from error
        if not isinstance(document, dict) or document.get("format") != "vit-edge plan":
            raise PlanError('expected a JSON object with "format": "vit-edge plan"')
        if document.get("version") != PLAN_VERSION:
            raise PlanError(f"expected plan version {PLAN_VERSION}, found {document.get('version')!r}")
        if document.get("target") not in ("vnni", "avx2", "arm64"):
            raise PlanError(f"expected target vnni, avx2 or arm64, found {document.get('target')!r}")
        return cls(
            target=document["target"],
            linears={name: _entry(LinearPlan, name, e) for name, e in document.get("linears", {}).items()},
            products={name: _entry(ProductPlan, name, e) for name, e in document.get("products", {}).items()},
        )


def _entry(kind: type[Any], name: str, document: Any) -> Any:
    known = {each.name for each in fields(kind)}
    if not isinstance(document, dict) or set(document) - known:
        raise PlanError(f"{name}: expected an object with {', '.join(sorted(known))}, found {document!r}")
    if document.get("precision") not in ("int8", "float32"):
        raise PlanError(f"{name}: expected precision int8 or float32, found {document.get('precision')!r}")
    try:
        values = {
            key: Range(**value) if isinstance(value, dict) else value for key, value in document.items()
        }
        return kind(**values)
    except TypeError as error:
        raise PlanError(f"{name}: {error}") from error


def _without_none(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def _float32(number: float) -> float:
    """The nearest float32, since that is what the graph will hold."""
    import numpy as np

    return float(np.float32(number))
