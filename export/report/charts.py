"""Charts as inline SVG. Colors and fonts are the page's (CSS classes), so that dark mode and print work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from export.report.number_formats import decibels

MOST_KINDS = 8  # as many as the page has colors
_BLOCK = re.compile(r"(?:^|[._/])(\d+)(?=[._/]|$)")
_MARKERS = (  # paths around (0, 0), so that kinds can be told apart in gray
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0Z",
    "M-3.2-3.2H3.2V3.2H-3.2Z",
    "M0-4.2L4 3.2H-4Z",
    "M0-4.6L4.6 0L0 4.6L-4.6 0Z",
    "M0 4.2L4-3.2H-4Z",
    "M-4-1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
)

Bar = tuple[str, float, str, str]  # name of the row, length, text at its end, CSS class of its color


def draw_bar_chart(bars: Sequence[Bar], title: str) -> Markup:
    """Draw horizontal bars from zero, 340 units wide; names stand above them so that any fits."""
    largest = max((value for _, value, _, _ in bars), default=0) or 1
    parts = []
    for i, (name, value, text, style) in enumerate(bars):
        y, length = i * 46, max(2.0, 338 * value / largest)
        parts.append(
            f'<text x="0" y="{y + 14}">{escape(name)}</text>'
            f'<text class="v" x="340" y="{y + 14}" text-anchor="end">{escape(text)}</text>'
            f'<rect class="{escape(style)}" x="0" y="{y + 21}" width="{length:.1f}" height="14" rx="3"/>'
        )
    return _svg(340, 46 * len(bars) - 8, title, parts)


@dataclass(frozen=True)
class LayerPoint:
    """A linear layer in the plot."""

    name: str
    group: str  # its block's number, or its own name where it stands in no block
    kind: str  # what it is in its block; empty outside
    value: float


def place_chart_points(layers: Mapping[str, float]) -> list[LayerPoint]:
    """Read block and kind from names like "blocks.3.mlp.fc1"; any names that number the blocks."""
    found = []
    for name, value in layers.items():
        block = _BLOCK.search(name)
        rest = name[block.end() :].strip("._/") if block else ""
        found.append(LayerPoint(name, block.group(1) if block and rest else name, rest, value))
    kinds = {layer.kind for layer in found}
    short = {kind: re.split(r"[._/]", kind)[-1] for kind in kinds}
    if len(kinds) > MOST_KINDS + 1:  # too many colors to distinguish: one kind for all
        short = {kind: "layer" if kind else "" for kind in kinds}
    elif len(set(short.values())) < len(kinds):
        return found
    return [replace(each, kind=short[each.kind]) for each in found]


def list_chart_kinds(layers: Sequence[LayerPoint]) -> list[str]:
    """Return the kinds in order of first appearance; layers outside of blocks have none."""
    return list(dict.fromkeys(layer.kind for layer in layers if layer.kind))


def draw_chart_legend(sqnr: Mapping[str, float]) -> list[tuple[str, Markup]]:
    """Return each kind of layer with its sign in the plot."""
    head = 'viewBox="-6 -6 12 12" aria-hidden="true"'
    return [
        (kind, Markup(f'<svg class="k{i}" {head}><path d="{_MARKERS[i % len(_MARKERS)]}"/></svg>'))
        for i, kind in enumerate(list_chart_kinds(place_chart_points(sqnr)))
    ]


def draw_layer_chart(sqnr: Mapping[str, float], *, width: int, height: int) -> Markup:
    """Draw the SQNR over the depth of the network: a line and a marker for each kind of layer."""
    layers = place_chart_points(sqnr)
    groups = list(dict.fromkeys(layer.group for layer in layers))
    low, high, step = _choose_scale([layer.value for layer in layers])
    left, right, top, bottom = 34, width - 10, 10, height - 42
    slot = (right - left) / max(len(groups), 1)

    def x(layer: LayerPoint) -> float:
        return left + (groups.index(layer.group) + 0.5) * slot

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for tick in range(low, high + 1, step):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    parts += _name_groups(groups, left, slot, bottom)
    order = {kind: i for i, kind in enumerate(list_chart_kinds(layers))}
    for kind, i in order.items():
        path = " ".join(f"{x(each):.1f},{y(each.value):.1f}" for each in layers if each.kind == kind)
        parts.append(f'<polyline class="k{i} trend" points="{path}"/>')
    for layer in layers:
        style = f"k{order[layer.kind]}" if layer.kind else "alone"
        path = _MARKERS[order.get(layer.kind, 0) % len(_MARKERS)]
        place = f"{x(layer):.1f} {y(layer.value):.1f}"
        title = f"<title>{escape(layer.name)}: {decibels(layer.value)}</title>"
        parts.append(f'<path class="{style} dot" transform="translate({place})" d="{path}">{title}</path>')
    return _svg(width, height, "Signal to noise of each layer's output, in dB, from input to output", parts)


def _name_groups(groups: Sequence[str], left: float, slot: float, bottom: float) -> list[str]:
    """Write block numbers, as many as fit; below them the names of what comes before and after the blocks."""
    every, parts = math.ceil(18 / slot), []
    for i, group in enumerate(groups):
        at = left + (i + 0.5) * slot
        if group.isdigit():
            if int(group) % every == 0:
                parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{group}</text>')
        elif i == 0 or i == len(groups) - 1:
            name = escape(group if len(group) <= 18 else group[:17] + "…")
            place = f'x="{at - 5:.1f}"' if i == 0 else f'x="{at + 5:.1f}" text-anchor="end"'
            parts.append(f'<text {place} y="{bottom + 35}">{name}</text>')
    return parts


def _choose_scale(values: Sequence[float]) -> tuple[int, int, int]:
    """Return lowest, highest and step of the axis in dB; layers without any noise stand at its upper end."""
    noisy = [value for value in values if value < 100] or [0.0, 40.0]
    low = math.floor(min(noisy) / 10) * 10
    high = max(math.ceil(max(noisy) / 10) * 10, low + 20)
    return low, high, 10 if high - low <= 80 else 20


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    name = f'role="img" aria-label="{escape(title)}"'
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" {name}>{"".join(parts)}</svg>')


FILTERS: Mapping[str, Callable[..., Any]] = {
    each.__name__: each for each in (draw_bar_chart, draw_chart_legend, draw_layer_chart)
}
