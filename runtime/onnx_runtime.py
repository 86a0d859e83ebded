"""The one import of ONNX Runtime, its telemetry turned off: every module takes `onnxruntime` from here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import MissingPackageError
from .telemetry import TOO_LATE, VARIABLE

try:
    import onnxruntime as onnxruntime  # under its own name: for others to import
except ImportError as error:
    raise MissingPackageError(
        "the runtime needs ONNX Runtime: pip install onnxruntime, or onnxruntime-gpu for an NVIDIA GPU"
    ) from error

if TYPE_CHECKING:
    from onnxruntime import InferenceSession as InferenceSession

if TOO_LATE:
    _package = __name__.rpartition(".")[0]
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    logging.getLogger(_package).warning(
        "onnxruntime was imported before %s, with its telemetry on; the events that can be turned off "
        "now are off: set %s=1 before the program starts, or import %s first",
        _package,
        VARIABLE,
        _package,
    )
