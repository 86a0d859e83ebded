"""The tree of errors that the four packages raise on purpose.

Any other exception is a bug, and the command lines let its traceback through.

    VitEdgeError                    the root; `exit_code` is what a command line returns for it
    ├── InputError (ValueError)     exit code 2: what was given cannot be used
    │   ├── ImageError              runtime: an image that cannot be read
    │   ├── ArtifactError           runtime: a model file that cannot be trusted
    │   ├── OnnxError               runtime: bytes that are no ONNX file
    │   ├── OutputError             runtime: an output that cannot be begun, continued or written
    │   │   └── DiskError           runtime: exit code 1: a disk that is full, or fails, during the work
    │   ├── DeviceError             runtime: a device that is absent, or cannot run the model
    │   ├── PlaceError              runtime: a source or output of a cluster run that nothing opens
    │   ├── ClusterError            runtime: a cluster that cannot be reached
    │   ├── ConfigError             vit: a shape that no model can have
    │   ├── RecipeError             vit: a recipe that cannot be followed
    │   ├── DataError               vit: images that cannot be used
    │   ├── CheckpointError         vit: a file that is no whole checkpoint
    │   ├── SourceError             vit: weights of another project that do not fit
    │   ├── PlanError               calibration: a plan that does not fit the model
    │   └── OnnxModelError          export: an ONNX model or a description that cannot be used
    ├── FailureError (RuntimeError) exit code 1: the work was begun and did not succeed
    │   ├── EngineError             runtime: work on a cluster that broke off
    │   ├── StaleRunError           runtime: a later run has taken over the output of this one
    │   ├── StoreError              runtime: a store that gives no file at all
    │   ├── TrainingError           vit: the loss is no longer a number
    │   ├── GraphError              calibration: a graph that has not the expected form
    │   ├── FallbackError           calibration: an INT8 layer that does not run in an integer kernel
    │   ├── BudgetError             calibration: no plan meets the limits
    │   └── ExportError             export: a result that must not be used
    │       └── DriftError          export: a variant further from float than the limits allow
    ├── MissingPackageError (ImportError)  exit code 1: an optional package that the work needs
    └── Interrupted                 exit code 130, or 143: asked to stop, and stopped with its state saved
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import ClassVar

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
_ACTIVATE = r".venv\Scripts\activate" if os.name == "nt" else ". .venv/bin/activate"


class VitEdgeError(Exception):
    """An error whose message is for the person who gave the command: expected, found, what to do."""

    exit_code: ClassVar[int] = FAILED


class InputError(VitEdgeError, ValueError):
    """Input that cannot be used."""

    exit_code = WRONG_USE


class ImageError(InputError):
    """An image that cannot be read. The message names its file, where it has one.

    Args:
        reason: why it cannot be read, for the line after a name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file: str | None = None  # its path, made safe to print

    def __str__(self) -> str:
        return self.reason if self.file is None else f"{self.file}: {self.reason}"


def limit_of(max_pixels: int) -> str:
    """Return the limit of an image in the words of whoever set it."""
    return f"the limit of {max_pixels:,} (max_pixels; --max-pixels on the command line)"


class FailureError(VitEdgeError, RuntimeError):
    """The work was begun and did not succeed."""


class MissingPackageError(VitEdgeError, ImportError):
    """An optional package that the work needs is not installed; the message has the line that installs it."""


def install_line(extra: str) -> str:
    """Return how to install what an extra of pyproject.toml brings: vit-edge is on no registry yet.

    Args:
        extra: one extra, or several with commas between them.
    """
    line = f"in a checkout of vit-edge: python tools/install.py {extra}"
    return (
        f"activate the environment of the checkout ({_ACTIVATE}), or {line}" if _has_environment() else line
    )


def _has_environment() -> bool:
    """Return whether a checkout has an environment (`make demo` makes one) which is not the one at work."""
    environment = Path(__file__).parents[1] / ".venv"
    return environment.is_dir() and not environment.samefile(sys.prefix)


class Interrupted(VitEdgeError):
    """The work was asked to stop, and stopped with its state saved."""

    exit_code = INTERRUPTED
