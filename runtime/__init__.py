"""Classify pictures with a model that `python -m export` made. Needs onnxruntime, numpy and pillow.

    from runtime import Classifier

    classify = Classifier("model.int8.onnx")
    print(classify("photo.jpg").label)

Everything is imported when it is first asked for, so that `runtime.preprocess` serves training and
calibration where there is no ONNX Runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.artifact import ArtifactError, Metadata, read_metadata
    from runtime.classifier import Classifier
    from runtime.files import find_pictures
    from runtime.opening import ModelInfo
    from runtime.preprocess import PictureError, Preprocess
    from runtime.results import Candidate, Prediction, Result
    from runtime.session import DeviceError, available_devices

__all__ = [
    "ArtifactError",
    "Candidate",
    "Classifier",
    "DeviceError",
    "Metadata",
    "ModelInfo",
    "PictureError",
    "Prediction",
    "Preprocess",
    "Result",
    "available_devices",
    "find_pictures",
    "read_metadata",
]

_HOMES = {
    "runtime.artifact": ("ArtifactError", "Metadata", "read_metadata"),
    "runtime.classifier": ("Classifier",),
    "runtime.files": ("find_pictures",),
    "runtime.opening": ("ModelInfo",),
    "runtime.preprocess": ("PictureError", "Preprocess"),
    "runtime.results": ("Candidate", "Prediction", "Result"),
    "runtime.session": ("DeviceError", "available_devices"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
