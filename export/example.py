"""The embedded example: scikit-learn's digits, trained when there is no finished checkpoint yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CHECKPOINT = Path("runs/digits")
ARTIFACTS = Path("artifacts/digits")
IMAGES = "digits"


def example_checkpoint(folder: Path = CHECKPOINT, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the checkpoint of the digits model, after training it as far as it is not trained yet.

    Args:
        folder: where the run is kept.
        say: called with a line for people when an interrupted training goes on.
    """
    from vit.checkpoint import FILE_NAME, load_checkpoint
    from vit.training import resume as state
    from vit.training.examples import train_example

    has_checkpoint = (folder / FILE_NAME).is_file()
    if has_checkpoint and load_checkpoint(folder).finished:
        return folder
    resume = (folder / state.FILE_NAME).is_file()
    if resume:
        say(f"{folder}: the training was interrupted; it goes on")
    return train_example("digits", folder, resume=resume)
