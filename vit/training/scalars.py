"""Metrics for TensorBoard, where it is installed and asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.command.line import installed
from runtime.errors import MissingPackageError, install_line


def check_tensorboard() -> None:
    """Refuse to write for TensorBoard where it is not installed.

    Raises:
        MissingPackageError: with the line that installs it.
    """
    if not installed("tensorboard"):
        raise MissingPackageError(f"--tensorboard needs it; {install_line('train,cpu,tensorboard')}")


@contextmanager
def scalars(out: Path, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes an epoch's row for TensorBoard, or does nothing."""
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
