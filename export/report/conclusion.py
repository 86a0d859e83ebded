"""Verdict of an export, and the one thing to do next."""

from __future__ import annotations

import math

from export.measure.limits import NEVER
from export.measure.results import Results
from export.report.figures import name_of
from export.report.usage import chosen_file
from runtime.text import format_count


def next_step(results: Results, place: str = "") -> str:
    """Say what to do now, in one line.

    Args:
        results: of the export.
        place: the folder of the files, to stand before their names, with its separator; empty for none.
    """
    status, file = results.verdict.status, f"{place}{chosen_file(results).file}"
    if status == "not judged":
        return _until_it_can_be_judged(results)
    ship = f"ship {file}"
    if results.other_warnings:
        return f"read the warnings; if none matters to you, {ship}"
    if status == "met":
        return ship
    if len(results.variants) == 1:
        return f"{ship}, or add --quantize --calibration IMAGES for a smaller and faster file"
    return f"{ship} if this drift is small enough for you; {_limit(results)} makes the export decide it"


def about(count: int) -> int:
    """Round a number of images up to two digits."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return math.ceil(count / unit) * unit


def _until_it_can_be_judged(results: Results) -> str:
    verdict, measured = results.verdict, int(results.evaluation["images"])
    if verdict.images_needed is not None:
        open_limits = {each.limit for each in verdict.limits if each.status == "not judged"}
        known = " with known classes" if "--max-drift" in open_limits else ""
        more = about(max(verdict.images_needed - measured, 1))
        images = format_count(more, "more image")
        step = f"bring about {images}{known} to measure on (--evaluate), and export again"
    elif any(each.doubt.endswith(NEVER) for each in verdict.limits):
        step = "set a wider limit, which some number of images can show"
    else:
        step = "measure on images that can show it (--evaluate IMAGES), and export again"
    changed = [
        f"{format_count(found, 'image')} that {name_of(each)} labels otherwise"
        for each in results.variants[1:]
        if (found := len(results.changed(each)))
    ]
    return step + (f"; until then look at the {' and the '.join(changed)}" if changed else "")


def _limit(results: Results) -> str:
    if not results.labels:
        return "--min-cosine COSINE"
    return "--max-drift POINTS" if results.targets is not None else "--min-agreement PERCENT"
