"""Classify images with a model that `python -m export` made. Needs onnxruntime, numpy and pillow.

    from runtime import Classifier

    classify = Classifier("model.int8.onnx")
    print(classify("photo.jpg").label)

Everything is imported when it is first asked for, so that `runtime.images.preprocess` serves training and
calibration where there is no ONNX Runtime. In reading order:

    errors, command/ the tree of errors; what the command lines share
    interrupts       Ctrl-C and SIGTERM at any moment of a command line
    text, writing    text of strangers made safe; files written aside and renamed, temporary folders
    strict_json      JSON documents of strangers
    images/          from a file on a disk to pixels
    model_file/      a model file, read with care
    telemetry        ONNX Runtime's, turned off
    onnx_runtime     the one import of ONNX Runtime
    cpu              kind of CPU and number of cores
    session_options  how threads wait, and which INT8 kernels are exact
    session          a device's name to a running ONNX Runtime session
    opening          a path to a checked model on a device
    results          logits to a prediction
    concurrency      a long stream over several threads
    open_model       what a classifier and an embedder share
    embedder         an image to its features
    classifier       the class that apps embed
    batch/           what only python -m runtime needs
    command_line     options and examples of python -m runtime
    __main__         python -m runtime
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import telemetry as _telemetry  # noqa: F401 (before anything can import ONNX Runtime)

if TYPE_CHECKING:
    from .classifier import Classifier
    from .embedder import Embedded, Embedder
    from .images.find_images import find_images
    from .images.preprocess import ImageError, ImageSource, Preprocess
    from .model_file.artifact import ArtifactError, Metadata, read_metadata
    from .open_model import ModelInfo
    from .results import Candidate, Prediction, Result
    from .session import Device, DeviceError, available_devices

__all__ = [
    "ArtifactError",
    "Candidate",
    "Classifier",
    "Device",
    "DeviceError",
    "Embedded",
    "Embedder",
    "ImageError",
    "ImageSource",
    "Metadata",
    "ModelInfo",
    "Prediction",
    "Preprocess",
    "Result",
    "available_devices",
    "find_images",
    "read_metadata",
]

_HOMES = {  # below this package, whatever its folder is called
    ".model_file.artifact": ("ArtifactError", "Metadata", "read_metadata"),
    ".classifier": ("Classifier",),
    ".embedder": ("Embedded", "Embedder"),
    ".images.find_images": ("find_images",),
    ".open_model": ("ModelInfo",),
    ".images.preprocess": ("ImageError", "ImageSource", "Preprocess"),
    ".results": ("Candidate", "Prediction", "Result"),
    ".session": ("Device", "DeviceError", "available_devices"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
