"""Quantization plan: the decisions of calibration as plain data.

A plan can be saved, read, compared, edited and written into a graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.model_file.targets import TARGETS, Target, unknown_target
from runtime.strict_json import unique_fields

# --- Fields of the entries of a plan.json: what each one must hold. A plan is edited by people ---


SMALLEST, LARGEST = 1.1754944e-38, 3.4028234e38  # of float32, without the numbers that lose digits


def is_number(value: Any) -> bool:
    """Return whether it is a number that float32 holds; in Python, True is an int."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_positive(value: Any) -> bool:
    """Return whether it is a number above 0 that float32 does not round to 0."""
    return is_number(value) and value >= SMALLEST


def is_whole(value: Any) -> bool:
    """Return whether it is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _all(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"scale", "zero_point"}


RANGE = 'an object such as {"scale": 0.02, "zero_point": 128}', _is_range
EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "input": RANGE,
    "left": RANGE,
    "right": RANGE,
    "rule": ("a word", lambda value: isinstance(value, str)),
    "per_token": ("a number above 0", is_positive),
    "float_columns": ("a list of whole numbers from 0", _all(is_whole)),
    "correction": ("a list of numbers", _all(is_number)),
    "strength": ("a number", is_number),
    "scales": ("a list of numbers above 0", _all(is_positive)),
}


def first_flaw(entry: Mapping[str, Any]) -> str:
    """Return what the first field that makes no sense holds in the place of what, or nothing.

    Args:
        entry: of a layer or a balance, with fields of `EXPECTED` and others; null is as good as absent.
    """
    for name, value in entry.items():
        if name in EXPECTED and value is not None:
            expected, accepts = EXPECTED[name]
            if not accepts(value):
                return f"{name}: expected {expected}, found {value!r:.80}"
    return ""


# --- Quantization plan: the decisions of calibration as plain data ---


PLAN_VERSION = 1
Precision = Literal["int8", "float16", "float32"]


class PlanError(InputError):
    """A plan that cannot be read, or that does not fit the graph."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Affine uint8: a number x is stored as clip(round(x / scale) + zero_point, 0, 255)."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not is_positive(self.scale) or not is_whole(self.zero_point) or self.zero_point > 255:
            raise PlanError(
                "expected scale > 0 and zero_point in 0..255 (a float32 and a whole number), found "
                f"{self.scale!r:.80}, {self.zero_point!r:.80}"
            )

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """The finest range that holds low, high and an exact zero; 0 to 1 for zeros alone."""
        low, high = min(low, 0.0), max(high, 0.0)
        # Any range stores zeros; a bias in units of a tiny one would not fit int32.
        scale = max((high - low) / 255, 1e-12) if high > low else 1 / 255
        return cls(scale=_float32(scale), zero_point=min(255, max(0, round(-low / scale))))

    def rounded(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers after they are stored in this range and read again."""
        levels = np.clip(np.rint(numbers / self.scale) + self.zero_point, 0, 255)
        return np.asarray((levels - self.zero_point) * self.scale)


PROBABILITY = Range(scale=1 / 255, zero_point=0)  # a softmax output: 0 to 1 whatever the image


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """One linear layer.

    With precision "int8" its weight is int8, symmetric, one scale per output channel; its sums are int32.
    With "float16" its weight is stored in float16 and multiplied in float32: half the bytes of "float32", at
    a rounding error 60 dB below the weights.

    With `per_token`, each row of the input is divided by its own largest magnitude (at least this number)
    before it is quantized and the result is multiplied by it: exact for a linear layer, and no image can
    exceed the range. `input` is then the range of the divided rows.
    """

    precision: Precision
    input: Range | None = None  # None for float32, and for the pixels, which are 8-bit already
    rule: str | None = None  # how the range was chosen, for the reader
    per_token: float | None = None
    float_columns: tuple[int, ...] = ()  # input features that are multiplied in float
    correction: tuple[float, ...] = ()  # added to the bias: the mean error that quantization makes


@dataclass(frozen=True, kw_only=True)
class ProductPlan:
    """One product of attention: both of its inputs in uint8, or both in float."""

    precision: Precision
    left: Range | None = None
    right: Range | None = None


@dataclass(frozen=True, kw_only=True)
class BalancePlan:
    """Scales that divide a producer's features and multiply the next weights; the result is the same."""

    strength: float
    scales: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """For each linear layer and each attention product of a graph: int8 with which ranges, or float32.

    `target` is the form of the weights. For "any-cpu" pairs of weights are so small that the 16-bit sums of
    an x86 CPU without VNNI cannot overflow; "full-range" uses -127 to 127.
    """

    target: Target
    linears: Mapping[str, LinearPlan] = field(default_factory=dict)
    products: Mapping[str, ProductPlan] = field(default_factory=dict)
    balance: Mapping[str, BalancePlan] = field(default_factory=dict)  # by the producer's name
    # How many tokens each block merges after its attention: an approximation, so empty unless asked for.
    merging: Mapping[str, int] = field(default_factory=dict)

    def quantized(self) -> list[str]:
        """The names of the linears in int8."""
        return [name for name, linear in self.linears.items() if linear.precision == "int8"]

    def to_json(self) -> str:
        """The same plan is the same text, byte for byte; one line a layer."""
        document: dict[str, Any] = {"format": "vit-edge plan", "version": PLAN_VERSION, "target": self.target}
        if self.merging:
            document["merging"] = dict(self.merging)
        sections = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
        for key, entries in _sections(self):
            lines = [
                f"  {json.dumps(name)}: {json.dumps(_told(asdict(entry)))}" for name, entry in entries.items()
            ]
            sections.append(f' "{key}": {{\n' + ",\n".join(lines) + "\n }")
        return "{\n" + ",\n".join(sections) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> QuantizationPlan:
        """Raises PlanError, which names the entry, for anything that is not a plan of this version."""
        try:
            # Numbers that no plan can hold are refused where they stand, by the name of their entry.
            document = json.loads(text, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            found = f"no JSON ({error})" if text.strip() else "an empty file"
            raise PlanError(f"expected a plan in JSON, found {found}") from error
        if not isinstance(document, dict) or document.get("format") != "vit-edge plan":
            raise PlanError('expected a JSON object with "format": "vit-edge plan"')
        if document.get("version") != PLAN_VERSION or document["version"] is True:
            raise PlanError(f"expected plan version {PLAN_VERSION}, found {document.get('version')!r}")
        if document.get("target") not in TARGETS:
            raise PlanError(unknown_target(document.get("target")))
        if unknown := sorted(set(document) - {"format", "version", *(each.name for each in fields(cls))}):
            raise PlanError(
                f"unknown in a plan: {', '.join(unknown)}; a section that is misspelled has no effect"
            )
        return cls(
            target=document["target"],
            linears=_section(LinearPlan, document, "linears"),
            products=_section(ProductPlan, document, "products"),
            balance=_section(BalancePlan, document, "balance"),
            merging=_merging(document.get("merging", {})),
        )


def read_plan(path: Path) -> QuantizationPlan:
    """Read a plan.json.

    Raises:
        PlanError: naming the file, when it is not a plan.
    """
    wanted = "the plan.json of an export"
    try:
        return QuantizationPlan.from_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such file; give {wanted}") from error
    except IsADirectoryError as error:
        raise PlanError(f"{path}: expected {wanted}, found a folder") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: expected {wanted}, found no text") from error
    except OSError as error:
        raise PlanError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def _merging(document: Any) -> dict[str, int]:
    if not isinstance(document, dict):
        raise PlanError(f'merging: expected an object such as {{"blocks.3": 16}}, found {document!r:.80}')
    for block, merged in document.items():
        if type(merged) is not int or merged < 1:  # in Python, True is an int
            raise PlanError(f"merging: {block}: expected a number of tokens from 1, found {merged!r:.80}")
    return dict(document)


def _section(kind: type[Any], document: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = document.get(key, {})
    if not isinstance(section, dict):
        raise PlanError(f"{key}: expected an object with an entry per layer, found {section!r:.80}")
    return {name: _entry(kind, name, entry) for name, entry in section.items()}


def _entry(kind: type[Any], name: str, document: Any) -> Any:
    known = {each.name for each in fields(kind)}
    if not isinstance(document, dict) or set(document) - known:
        raise PlanError(f"{name}: expected an object with {', '.join(sorted(known))}, found {document!r:.80}")
    if "precision" in known and document.get("precision") not in _precisions(kind):
        expected = " or ".join(_precisions(kind))
        raise PlanError(f"{name}: expected precision {expected}, found {document.get('precision')!r:.80}")
    if flaw := first_flaw(document):
        raise PlanError(f"{name}: {flaw}")
    try:
        return kind(**{key: _value(value) for key, value in document.items() if value is not None})
    except (PlanError, TypeError) as error:
        raise PlanError(f"{name}: {error}") from error


def _precisions(kind: type[Any]) -> tuple[str, ...]:
    return ("int8", "float32") if kind is ProductPlan else get_args(Precision)


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return Range(**value)
    return tuple(value) if isinstance(value, list) else value


def _sections(plan: QuantizationPlan) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return ("balance", plan.balance), ("linears", plan.linears), ("products", plan.products)


def _told(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that say nothing."""
    return {key: value for key, value in document.items() if value is not None and value != ()}


def _float32(number: float) -> float:
    """The nearest float32, since that is what the graph will hold."""
    return float(np.float32(number))
