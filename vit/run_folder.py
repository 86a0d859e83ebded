"""The folder of a training run: whether a run may start, resume or replace another one, and its metrics.

Nothing here needs torch, until metrics are written for TensorBoard.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from calibration.plan import QuantizationPlan
from runtime.command.line import is_installed
from runtime.command.locking import only_writer
from runtime.errors import MissingPackageError, install_line
from runtime.writing import OutputError, check_folder, write_atomically
from vit.document import FILE_NAME, CheckpointError, find_checkpoint, read_document

STATE = "state.safetensors"
# Of a run that trains with a plan: what an export of it needs beside the checkpoint.
FLOAT_MODEL = "float.safetensors"  # the checkpoint that it started from, its teacher
PLAN = "plan.json"


def lock_run_folder(out: Path) -> AbstractContextManager[None]:
    """Keep other runs out of the folder of a run; the processes that torchrun starts are one run."""
    return only_writer(out) if is_first_process() else nullcontext()


def is_first_process() -> bool:
    """Return whether this process writes the files of a run: of those that torchrun starts, one does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def open_run_folder(out: Path, *, resume: str | None, overwrite: bool, report: Callable[[str], None]) -> bool:
    """Return whether to resume the run in `out`; refuse to lose a run unless the user asked for it.

    "auto" resumes where a state was saved, and starts a run where none was: a process that torchrun starts
    again has the arguments of the first. The state is saved after all processes of a run have joined, so that
    all of them find it or none does. A best checkpoint that an interrupted first epoch left is replaced.
    `report` is called with a line about what "auto" does.

    Raises:
        OutputError: for a folder that cannot be written to, and for a run that would be lost.
        CheckpointError: if there is nothing to resume.
    """
    if resume and overwrite:
        raise OutputError("expected --resume (continue the run) or --overwrite (replace it), found both")
    check_folder(out)
    if resume == "yes":
        find_state(out)
        return True
    if resume == "auto":
        if (out / STATE).exists():
            report(f"--resume auto: resuming the run in {out}")
            return True
        report(f"--resume auto: no state of a run in {out}, starting one")
        if not ((out / FILE_NAME).exists() and read_document(out).finished):
            return False
    found = next((name for name in (FILE_NAME, STATE) if (out / name).exists()), None)
    if found and not overwrite:
        hint = "resume it by --resume, " if (out / STATE).exists() else ""
        hint += "replace it by --overwrite, or choose another --out"
        raise OutputError(f"{out}: a run is there already ({found}); {hint}")
    return False


def keep_float_model(out: Path, source: Path, plan: QuantizationPlan) -> None:
    """Put the plan, and the checkpoint of the float model, beside the checkpoint of the run in `out`."""
    write_atomically(out / PLAN, plan.to_json().encode())
    write_atomically(out / FLOAT_MODEL, find_checkpoint(source).read_bytes())


def find_state(out: Path) -> Path:
    """Return the file with the state of an unfinished run; none is a `CheckpointError`."""
    if not (out / STATE).is_file():
        raise CheckpointError(f"{out}: no {STATE} to resume from; start without --resume")
    return out / STATE


# --- Metrics ---


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> None:
    """Write the history, one row per epoch, and the seconds of each epoch as CSV."""
    text = io.StringIO()
    rows = [{**row, "seconds": round(t, 3)} for row, t in zip(history, seconds, strict=True)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def check_tensorboard() -> None:
    """Refuse to write for TensorBoard where it is not installed."""
    if not is_installed("tensorboard"):
        raise MissingPackageError(f"--tensorboard needs it; {install_line('train,cpu,tensorboard')}")


@contextmanager
def open_tensorboard(out: Path, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that writes an epoch's row into `out/tensorboard`, or does nothing if not `wanted`."""
    if not wanted:
        yield lambda _: None
        return
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(out / "tensorboard") as writer:

        def write(row: Mapping[str, Any]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield write
