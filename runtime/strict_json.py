"""JSON documents from files that strangers made."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, NoReturn

from .text import one_line


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document that every reader understands alike.

    Python's own parser keeps the last of two fields with one name, and makes infinity of 1e999.

    Raises:
        ValueError: when it is no JSON, when an object has two fields with one name, for NaN, Infinity and
            numbers beyond a float64, and when it is nested deeper than Python's stack.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=unique_fields,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of its fields; as `object_pairs_hook` of a parser.

    Raises:
        ValueError: when two have one name.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object has two fields {one_line(name)!r}, expected one")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{one_line(text):.24} is larger than a float64 can be")
    return number


def _int(text: str) -> int:
    _float(text)
    return int(text)
