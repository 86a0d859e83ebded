"""Metrics of a run: metrics.csv, and scalars for TensorBoard where it is asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.command.line import installed
from runtime.errors import MissingPackageError, install_line
from runtime.writing import write_atomically


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> None:
    """Write the history as CSV.

    Args:
        path: the file.
        history: one row per epoch.
        seconds: duration of each epoch.
    """
    text = io.StringIO()
    rows = [{**row, "seconds": round(t, 3)} for row, t in zip(history, seconds, strict=True)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def check_tensorboard() -> None:
    """Refuse to write for TensorBoard where it is not installed.

    Raises:
        MissingPackageError: with the line that installs it.
    """
    if not installed("tensorboard"):
        raise MissingPackageError(f"--tensorboard needs it; {install_line('train,cpu,tensorboard')}")


@contextmanager
def open_tensorboard(out: Path, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that writes an epoch's row into `out/tensorboard`, or does nothing if not `wanted`."""
    if not wanted:
        yield lambda _: None
        return
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    def write(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    writer = SummaryWriter(out / "tensorboard")
    try:
        yield write
    finally:
        writer.close()
