"""The embedded example: scikit-learn's digits, trained when there is no finished checkpoint yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.errors import Interrupted

EXAMPLE = "digits"
CHECKPOINT = Path("runs/digits")
ARTIFACTS = Path("artifacts/digits")
IMAGES = "digits"


def example_checkpoint(folder: Path = CHECKPOINT, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the checkpoint of the digits model, after training it as far as it is not trained yet.

    Args:
        folder: where the run is kept.
        say: called with a line for people when an interrupted training goes on.
    """
    from vit.document import FILE_NAME, read_document
    from vit.run_folder import STATE
    from vit.training.examples import train_example

    has_checkpoint = (folder / FILE_NAME).is_file()
    if has_checkpoint and read_document(folder).finished:
        return folder
    resume = (folder / STATE).is_file()
    if resume:
        say(f"{folder}: the training was interrupted; it goes on")
    try:
        return train_example(EXAMPLE, folder, resume=resume)
    except Interrupted as error:
        raise Interrupted(
            f"stopped in training; its state is kept in {folder}: the same command goes on"
        ) from error
