"""Drift that the monitor of a run has found: a file beside the output, and a line (--monitor)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text import make_printable
from ..writing import explain_output_errors, write_atomically

if TYPE_CHECKING:
    from ..loaded_model import LoadedModel

SUFFIX = ".monitor.json"  # behind the name of the output


def start_monitor(model: LoadedModel[Any], output: str, min_score: float | None = None) -> None:
    """Let a model monitor the images of a whole run; `output` is that of its graph which answers.

    Raises:
        ArtifactError: when its file holds nothing to compare with.
    """
    from ..monitor.monitor import SAMPLE, open_monitor

    info = model.info
    monitor = open_monitor(
        info.field_statistics,
        info.outputs,
        str(info.path),
        output=output,
        window=SAMPLE,
        whole=True,
        min_score=min_score,
    )
    model.set_monitor(monitor)


def write_field_report(model: LoadedModel[Any], output: Path | None) -> None:
    """Write what a model's monitor has found beside the output, if there is one, and print the sentence."""
    if model.monitor is None:
        return
    report = model.monitor.read()
    if output is not None:
        place = output.with_name(output.name + SUFFIX)
        with explain_output_errors(place, begun=True):
            write_atomically(place, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    print(make_printable(f"monitor: {report.sentence}"), file=sys.stderr)
