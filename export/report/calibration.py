"""Health of the calibration on the page: on what, and how much of new images lies beyond its ranges."""

from __future__ import annotations

from typing import Any

from export.measure.evidence import CLIPPED
from export.measure.results import Results
from export.report.figures import MINUS
from runtime.text import format_count

WORST = 5


def calibration_section(results: Results) -> dict[str, Any] | None:
    """Return what the template shows of the calibration; None without INT8."""
    if all(each.variant != "int8" for each in results.variants):
        return None
    section: dict[str, Any] = {"lead": _lead(results), "health": "", "rows": []}
    clipping = results.clipping
    if clipping is None:
        section["health"] = (
            "The share of clipped activations was not measured, since tokens are merged: merged tokens "
            "have no counterpart in float32."
        )
    elif not clipping.layers:
        section["health"] = (
            "No layer can clip: each has a range of its own for every row, or stays in float32."
        )
    else:
        shares = {name: each.share for name, each in clipping.layers.items()}
        beyond = sum(share > CLIPPED for share in shares.values())
        section["health"] = (
            f"On {clipping.images} evaluation images, {_percent(sum(shares.values()) / len(shares))} of the "
            f"activations of a layer are clipped on average over {format_count(len(shares), 'layer')}, "
            f"{_percent(max(shares.values()))} in the worst one. "
            + (
                f"{beyond} of the layers are beyond the limit of {_percent(CLIPPED)}."
                if beyond
                else f"No layer is beyond the limit of {_percent(CLIPPED)}: the calibration images are like "
                "those that are measured."
            )
        )
        worst = sorted(shares, key=lambda name: -shares[name])[:WORST]
        section["rows"] = [(name, _percent(shares[name])) for name in worst if shares[name] > 0]
    return section


def _lead(results: Results) -> str:
    found = results.calibration
    if "plan" in found:
        return f"Nothing was calibrated: the ranges are those of {found['plan']}."
    return (
        f"The ranges of INT8 come from {format_count(found['images'], 'image')} of {found['source']}, none "
        "of which was measured on."
    )


def _percent(share: float) -> str:
    if 0 < share < 0.00005:
        return "below 0.005 %"
    return f"{100 * share:.2f} %".replace("-", MINUS)
