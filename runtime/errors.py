"""The errors that the four packages raise on purpose; any other exception is a bug, shown with its traceback.

VitEdgeError                    the root; `exit_code` is that of a command line
├── InputError (ValueError)     exit code 2: what was given cannot be used
│   ├── ImageError              runtime: an image that cannot be read
│   ├── ArtifactError           runtime: a model file that cannot be trusted
│   ├── OnnxError               runtime: bytes that are no ONNX file
│   ├── OutputError             runtime: an output that cannot be begun, resumed or written
│   │   └── DiskError           runtime: exit code 1: a disk that is full, or fails, during the work
│   ├── DeviceError             runtime: a device that is absent, or cannot run the model
│   ├── LocationError           runtime: a source or output of a cluster run that nothing opens
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
    """An error whose message is for the user: what was expected, what was found, what to do."""

    exit_code: ClassVar[int] = FAILED


class InputError(VitEdgeError, ValueError):
    """Input that cannot be used."""

    exit_code = WRONG_USE


class ImageError(InputError):
    """An image that cannot be read, and the reason. The message names its file, where it has one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file: str | None = None  # its path, safe to print

    def __str__(self) -> str:
        return self.reason if self.file is None else f"{self.file}: {self.reason}"


def describe_pixel_limit(max_pixels: int) -> str:
    """Return the limit on the pixels of an image, and how it is set, for a message."""
    return f"the limit of {max_pixels:,} (max_pixels; --max-pixels on the command line)"


class FailureError(VitEdgeError, RuntimeError):
    """Work that was begun and did not succeed."""


class MissingPackageError(VitEdgeError, ImportError):
    """An optional package that is not installed; the message has the command that installs it."""


def install_line(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml; vit-edge is on no registry yet.

    Args:
        extra: one extra, or several with commas between them.
    """
    line = f"in a checkout of vit-edge: python tools/install.py {extra}"
    environment = Path(__file__).parents[1] / ".venv"  # of a checkout; `make demo` makes one
    if environment.is_dir() and not environment.samefile(sys.prefix):
        return f"activate the environment of the checkout ({_ACTIVATE}), or {line}"
    return line


class Interrupted(VitEdgeError):
    """Work that a signal stopped, with its state saved."""

    exit_code = INTERRUPTED
