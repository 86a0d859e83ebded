"""Untrusted JSON documents: strict parsing, and fields of the expected types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin

from .text import clean_line

T = TypeVar("T")
_NAMES: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
_REQUIRED: Any = object()


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document, refusing what other parsers may read differently.

    `json.loads` keeps the last of two fields with one name, and turns 1e999 into infinity.

    Args:
        text: the document, as text or encoded as UTF-8.

    Returns:
        The value of the document: a dict, list, str, int, float, bool or None.

    Raises:
        ValueError: for text that is not JSON, an object with two fields of one name, NaN, Infinity, numbers
            beyond the range of float64, and nesting deeper than Python's stack.
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
    """Return the fields of a JSON object as a dict; an `object_pairs_hook` for `json.loads`.

    Args:
        pairs: name and value of each field, in the order of the document.

    Raises:
        ValueError: when two fields have one name.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object has two fields {clean_line(name)!r}, expected one")
        found[name] = value
    return found


def read_field(document: object, name: str, kind: type[T], *, where: str, default: T = _REQUIRED) -> T:
    """Return one field of a JSON object after checking its type.

    Args:
        document: the parsed object.
        name: the field.
        kind: str, int, float, bool, dict or list, or a list of one of these, such as `list[str]`. float
            accepts whole numbers; int and float do not accept true and false.
        where: the file or object that messages name, such as "config.json".
        default: returned for a field that is absent or null; without it such a field is an error.

    Raises:
        ValueError: when the document is no object, or when the field is absent or has another type.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"{where}: expected an object, found {document!r:.60}")
    value: Any = document.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if name not in document:
        raise ValueError(f"{where}: expected a field {name!r}, found none")
    if not _has_type(value, kind):
        inner = f" of {_NAMES[get_args(kind)[0]]}" if get_args(kind) else ""
        expected = _NAMES[get_origin(kind) or kind] + inner
        raise ValueError(f"{where}: expected {name} to be {expected}, found {value!r:.60}")
    return cast(T, value)


def _has_type(value: object, kind: Any) -> bool:
    if origin := get_origin(kind):
        (inner,) = get_args(kind)
        return isinstance(value, origin) and all(_has_type(each, inner) for each in cast(list[object], value))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{clean_line(text):.24} is larger than a float64 can be")
    return number


def _int(text: str) -> int:
    _float(text)
    return int(text)
