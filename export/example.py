"""The embedded example: scikit-learn's digits, trained when there is no checkpoint yet."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path("runs/digits")
ARTIFACTS = Path("artifacts/digits")
PICTURES = "digits"


def example_checkpoint(folder: Path = CHECKPOINT) -> Path:
    """The checkpoint of the digits model, trained now if it is not there."""
    from vit.checkpoint import FILE_NAME
    from vit.train import train_digits

    return folder if (folder / FILE_NAME).is_file() else train_digits(folder)
