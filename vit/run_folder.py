"""The folder of a training run: whether it may be begun, replaced, or gone on with. Known without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from runtime.command.locking import only_writer
from runtime.writing import OutputError, check_folder
from vit.document import FILE_NAME, CheckpointError, read_document

STATE = "state.safetensors"


def write_alone(out: Path) -> AbstractContextManager[None]:
    """Keep other runs out of the folder of a run; the processes that torchrun starts are one run.

    Raises:
        OutputError: on entering, if another process writes into it.
    """
    return only_writer(out) if is_first_process() else nullcontext()


def is_first_process() -> bool:
    """Return whether this process writes the files of a run: one of those that torchrun starts does."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def open_run_folder(out: Path, *, resume: str | None, overwrite: bool, report: Callable[[str], None]) -> bool:
    """Return whether to go on with the run in `out`; refuse to lose a run unless the user said so.

    "auto" goes on where a state was saved, and begins where none was: a process that torchrun starts again
    has the arguments of the first. The state is saved after all processes of a run have joined, so that all
    of them find it or none does. A best checkpoint that an interrupted first epoch left is begun anew.

    Args:
        out: the folder of the run.
        resume: None, "yes" or "auto".
        overwrite: replace the run that is there.
        report: takes a line that says what "auto" does.

    Raises:
        OutputError: for a folder that cannot be written to, and for a run that would be lost.
        CheckpointError: if there is nothing to go on with.
    """
    if resume and overwrite:
        raise OutputError("expected --resume (go on with the run) or --overwrite (replace it), found both")
    check_folder(out)
    if resume == "yes":
        state_file(out)
        return True
    if resume == "auto":
        if (out / STATE).exists():
            report(f"--resume auto: going on with the run in {out}")
            return True
        report(f"--resume auto: no state of a run in {out}, beginning one")
        if not _is_finished(out):
            return False
    found = next((name for name in (FILE_NAME, STATE) if (out / name).exists()), None)
    if found and not overwrite:
        going_on = "go on with it by --resume, " if (out / STATE).exists() else ""
        raise OutputError(
            f"{out}: a run is there already ({found}); {going_on}replace it by --overwrite, or choose "
            "another --out"
        )
    return False


def state_file(out: Path) -> Path:
    """Return the file with the state of an unfinished run.

    Raises:
        CheckpointError: if there is none.
    """
    if not (out / STATE).is_file():
        raise CheckpointError(f"{out}: no {STATE} to resume from; start without --resume")
    return out / STATE


def _is_finished(out: Path) -> bool:
    return (out / FILE_NAME).exists() and read_document(out).finished
