"""Fields of the entries of a plan.json: what each one must hold. A plan is edited by people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
