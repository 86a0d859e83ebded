"""Classify images with a model that `python -m export` made. Needs onnxruntime, numpy and pillow.

    from runtime import Classifier

    classify = Classifier("model.int8.onnx")
    print(classify("photo.jpg").label)

Each name is imported when it is first used, so that training and calibration can use
`runtime.images.preprocess` where there is no ONNX Runtime. The files, in reading order:

    classifier     classify images: the class that apps embed
    embedder       embed images
    monitor/       find drift: images and answers of a device against those at export
    self_test/     check a device with the images and answers in a model file
    loaded_model   base of both: a model file that is loaded and runs
    load_model     check a model file and open it on a device
    placement      where the nodes of a model run
    devices        the table of devices, and the options of one
    session        a session of ONNX Runtime on a device
    plugins        plugins of ONNX Runtime, which bring some devices
    compile_cache  a folder for what a provider compiles
    results        from logits to a prediction
    concurrency    streams of images, with several threads
    images/        from image files to pixels
    model_file/    read a model file and check it
    update/        sign, install and roll back models on a device
    strict_json    untrusted JSON documents
    text           untrusted text, made safe to print; counts and lists in messages
    writing        files that are written whole or not at all, and temporary folders
    errors         the tree of errors
    interrupts     Ctrl-C and SIGTERM at any moment of a command line
    cpu            kind of CPU and number of cores
    telemetry      turns that of ONNX Runtime off
    onnx_runtime   the one import of ONNX Runtime
    command/       what all command lines share
    batch/         what only python -m runtime needs
    command_line   options and examples of python -m runtime
    __main__       python -m runtime
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import telemetry as _telemetry  # noqa: F401 (before anything can import ONNX Runtime)

if TYPE_CHECKING:
    from .classifier import Classifier
    from .devices import Device, DeviceError, DeviceOptions
    from .embedder import Embedded, Embedder
    from .images.find_images import find_images
    from .images.preprocess import ImageError, ImageSource, Preprocess
    from .load_model import ModelInfo
    from .model_file.artifact import ArtifactError, Metadata, read_metadata
    from .placement import Placement
    from .results import Candidate, Prediction, Result
    from .self_test.check import DeviceCheck, check_model
    from .session import available_devices

__all__ = ["ArtifactError", "Candidate", "Classifier", "Device", "DeviceCheck", "DeviceError"]
__all__ += ["DeviceOptions", "Embedded", "Embedder", "ImageError", "ImageSource", "Metadata", "ModelInfo"]
__all__ += ["Placement", "Prediction", "Preprocess", "Result", "available_devices", "check_model"]
__all__ += ["find_images", "read_metadata"]

_HOMES = {  # below this package, whatever its folder is called
    ".model_file.artifact": ("ArtifactError", "Metadata", "read_metadata"),
    ".classifier": ("Classifier",),
    ".devices": ("Device", "DeviceError", "DeviceOptions"),
    ".embedder": ("Embedded", "Embedder"),
    ".images.find_images": ("find_images",),
    ".load_model": ("ModelInfo",),
    ".images.preprocess": ("ImageError", "ImageSource", "Preprocess"),
    ".placement": ("Placement",),
    ".results": ("Candidate", "Prediction", "Result"),
    ".self_test.check": ("DeviceCheck", "check_model"),
    ".session": ("available_devices",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
