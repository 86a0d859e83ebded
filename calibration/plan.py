"""Quantization plan: the decisions of calibration as plain data.

A plan can be saved as plan.json, read, compared, edited and written into a graph.
"""

from __future__ import annotations

import hashlib
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

PLAN_VERSION = 1
SMALLEST, LARGEST = 1.1754944e-38, 3.4028234e38  # of float32, without the numbers that lose digits
Precision = Literal["int8", "float16", "float32"]


class PlanError(InputError):
    """A plan that cannot be read, or that does not fit the graph."""


def _is_number(value: Any) -> bool:
    """Return whether it is a number that float32 holds; in Python, True is an int."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _is_positive(value: Any) -> bool:
    """Return whether it is a number above 0 that float32 does not round to 0."""
    return _is_number(value) and value >= SMALLEST


def _is_whole(value: Any) -> bool:
    """Return whether it is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True, kw_only=True)
class Range:
    """Affine integers of 8 or 16 bits: x is stored as clip(round(x / scale) + zero_point, 0, largest).

    They are unsigned, so `largest` is 255 or 65,535. Target "npu" alone has ranges of 16 bits.
    """

    scale: float
    zero_point: int
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.bits not in (8, 16) or isinstance(self.bits, bool):
            raise PlanError(f"expected bits 8 or 16, found {self.bits!r:.80}")
        if not _is_positive(self.scale) or not _is_whole(self.zero_point) or self.zero_point > self.largest:
            raise PlanError(
                f"expected scale > 0 and zero_point in 0..{self.largest} (a float32 and a whole number), "
                f"found {self.scale!r:.80}, {self.zero_point!r:.80}"
            )

    @property
    def largest(self) -> int:
        """The largest integer that is stored."""
        return int(2**self.bits - 1)

    @classmethod
    def of(cls, low: float, high: float, bits: Literal[8, 16] = 8) -> Range:
        """Return the finest range that holds low, high and an exact zero; 0 to 1 for zeros alone."""
        low, high = min(low, 0.0), max(high, 0.0)
        # Any range stores zeros; a bias in units of a tiny one would not fit int32.
        levels = 2**bits - 1
        scale = max((high - low) / levels, 1e-12) if high > low else 1 / levels
        # The nearest float32, since that is what the graph holds.
        zero_point = min(levels, max(0, round(-low / scale)))
        return cls(scale=float(np.float32(scale)), zero_point=zero_point, bits=bits)

    def quantize(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return the integers that are stored for the numbers, in a floating-point type."""
        return np.asarray(np.clip(np.rint(numbers / self.scale) + self.zero_point, 0, self.largest))

    def fake_quantize(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers after they are stored in this range and read again."""
        return np.asarray((self.quantize(numbers) - self.zero_point) * self.scale)


PROBABILITY = Range(scale=1 / 255, zero_point=0)  # a softmax output: 0 to 1 whatever the image


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """Precision of one linear layer.

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
    correction: tuple[float, ...] = ()  # added to the bias: the mean error of INT8 up to here
    # Of each output channel's scale to the smallest one that holds all its weights; none means 1 for all.
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProductPlan:
    """Precision of one attention product: both of its inputs in uint8, or both in float32."""

    precision: Precision
    left: Range | None = None
    right: Range | None = None


@dataclass(frozen=True, kw_only=True)
class BalancePlan:
    """Scales that divide a producer's features and multiply the next weights; the result is the same."""

    strength: float  # exponent of the features' ranges that gave the scales, for the reader
    scales: tuple[float, ...]  # one per feature


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """For each linear layer and each attention product of a graph: int8 with which ranges, or float32.

    `target` is the form of the weights. For "any-cpu" pairs of weights are so small that the 16-bit sums of
    an x86 CPU without VNNI cannot overflow; "full-range" uses -127 to 127, and so does "npu".
    """

    target: Target
    linears: Mapping[str, LinearPlan] = field(default_factory=dict)
    products: Mapping[str, ProductPlan] = field(default_factory=dict)
    # Target "npu" alone: the range of every tensor between two operators, by the first one that shares it.
    activations: Mapping[str, Range] = field(default_factory=dict)
    balance: Mapping[str, BalancePlan] = field(default_factory=dict)  # by the producer's name
    # How many tokens each block merges after its attention: an approximation, so empty unless asked for.
    merging: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the text of its plan.json, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def int8_linears(self) -> list[str]:
        """Return the names of the linears in int8."""
        return [name for name, linear in self.linears.items() if linear.precision == "int8"]

    def to_json(self) -> str:
        """Return the text of a plan.json: one line per layer, and the same bytes for the same plan."""
        document: dict[str, Any] = {"format": "vit-edge plan", "version": PLAN_VERSION, "target": self.target}
        if self.merging:
            document["merging"] = dict(self.merging)
        sections = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
        for key in (*(("activations",) if self.activations else ()), "balance", "linears", "products"):
            entries: Mapping[str, Any] = getattr(self, key)
            lines = [f"  {json.dumps(name)}: {_format_entry(entry)}" for name, entry in entries.items()]
            sections.append(f' "{key}": {{\n' + ",\n".join(lines) + "\n }")
        return "{\n" + ",\n".join(sections) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> QuantizationPlan:
        """Read the text of a plan.json.

        Raises:
            PlanError: naming the entry, for anything that is not a plan of this version.
        """
        try:
            # Not parse_json: a number that no plan can hold is refused below, with the name of its entry.
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
            linears=_read_section(LinearPlan, document, "linears"),
            products=_read_section(ProductPlan, document, "products"),
            activations=_read_section(Range, document, "activations"),
            balance=_read_section(BalancePlan, document, "balance"),
            merging=_read_merging(document.get("merging", {})),
        )


def round_numbers(array: NDArray[Any]) -> tuple[float, ...]:
    """Return numbers of six digits: they differ far less than a step, and people read a plan."""
    return tuple(float(f"{number:.6g}") for number in array)


def read_plan(path: Path) -> QuantizationPlan:
    """Return the plan of a plan.json; `calibration.write.write_plan` checks that it fits a graph.

    Args:
        path: the file.

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


def _format_entry(entry: Any) -> str:
    """Return the JSON of an entry without its empty fields; a range has 8 bits unless it says more."""

    def drop_empty(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if value not in (None, ()) and (key, value) != ("bits", 8)}

    return json.dumps(asdict(entry, dict_factory=drop_empty))


# --- Read the sections of a plan.json: people edit it, so every field is checked ---


def _read_merging(document: Any) -> dict[str, int]:
    if not isinstance(document, dict):
        raise PlanError(f'merging: expected an object such as {{"blocks.3": 16}}, found {document!r:.80}')
    for block, merged in document.items():
        if not _is_whole(merged) or merged < 1:
            raise PlanError(f"merging: {block}: expected a number of tokens from 1, found {merged!r:.80}")
    return dict(document)


def _read_section(kind: type[Any], document: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = document.get(key, {})
    if not isinstance(section, dict):
        raise PlanError(f"{key}: expected an object with an entry per layer, found {section!r:.80}")
    return {name: _read_entry(kind, name, entry) for name, entry in section.items()}


def _read_entry(kind: type[Any], name: str, document: Any) -> Any:
    known = {each.name for each in fields(kind)}
    if not isinstance(document, dict) or set(document) - known:
        raise PlanError(f"{name}: expected an object with {', '.join(sorted(known))}, found {document!r:.80}")
    precisions = ("int8", "float32") if kind is ProductPlan else get_args(Precision)
    if "precision" in known and document.get("precision") not in precisions:
        expected, found = " or ".join(precisions), document.get("precision")
        raise PlanError(f"{name}: expected precision {expected}, found {found!r:.80}")
    given = {key: value for key, value in document.items() if value is not None}  # null is as good as absent
    for key, value in given.items():
        expected, accepts = EXPECTED.get(key, ("", None))
        if accepts is not None and not accepts(value):
            raise PlanError(f"{name}: {key}: expected {expected}, found {value!r:.80}")
    try:
        return kind(**{key: _read_value(value) for key, value in given.items()})
    except (PlanError, TypeError) as error:
        raise PlanError(f"{name}: {error}") from error


def _read_value(value: Any) -> Any:
    if isinstance(value, dict):
        return Range(**value)
    return tuple(value) if isinstance(value, list) else value


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


RANGE = (
    'an object such as {"scale": 0.02, "zero_point": 128}',
    lambda value: isinstance(value, dict) and set(value) - {"bits"} == {"scale", "zero_point"},
)
# What each field of an entry must hold, and the test of it.
EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "input": RANGE,
    "left": RANGE,
    "right": RANGE,
    "rule": ("a word", lambda value: isinstance(value, str)),
    "per_token": ("a number above 0", _is_positive),
    "float_columns": ("a list of whole numbers from 0", _list_of(_is_whole)),
    "correction": ("a list of numbers", _list_of(_is_number)),
    "ratios": ("a list of numbers above 0", _list_of(_is_positive)),
    "strength": ("a number", _is_number),
    "scales": ("a list of numbers above 0", _list_of(_is_positive)),
}
