"""Which layers INT8 quantizes and which it leaves in float32, in one sentence that adds up."""

from __future__ import annotations

from collections.abc import Sequence

from export.measure.results import Layers
from runtime.text import format_count


def layers_in_words(layers: Layers) -> str:
    """Return the sentence: "26 linear layers, 21 in INT8 (all in integer kernels), 5 stay float32: …"."""
    parts = [
        _kind(layers.int8_linears, layers.float_linears, "linear layer"),
        _kind(layers.int8_products, layers.float_products, "attention product"),
    ]
    return "; ".join(part for part in parts if part)


def shortened(names: Sequence[str], count: int = 3) -> str:
    """The first names, and how many more there are; report.json has them all."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _kind(int8: int, in_float: Sequence[str], noun: str) -> str:
    total = format_count(int8 + len(in_float), noun)
    if not int8 and not in_float:
        return ""
    if not in_float:
        return f"{total}, all in INT8 and in integer kernels"
    if not int8:
        return f"{total}, all in float32"
    stay = "stays" if len(in_float) == 1 else "stay"
    return (
        f"{total}, {int8} in INT8 (all in integer kernels), {len(in_float)} {stay} float32: "
        f"{shortened(in_float)}"
    )
