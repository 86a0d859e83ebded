"""Output of --verbose: the model, the device, and where the nodes of the model run."""

from __future__ import annotations

import sys

from ..loaded_model import ModelInfo
from ..onnx_runtime import onnxruntime
from ..placement import describe_placement
from ..text import format_count, make_printable


def print_model(info: ModelInfo) -> None:
    """Print the model and where it runs to standard error."""
    lines = [
        f"model: {info.path} ({info.variant}, {info.producer}, SHA-256 {info.sha256})",
        f"device: {info.device}, {format_count(info.threads, 'thread')} per image, "
        f"onnxruntime {onnxruntime.__version__}",
        f"placement: {describe_placement(info.placement)}",
    ]
    print("\n".join(map(make_printable, lines)), file=sys.stderr)
