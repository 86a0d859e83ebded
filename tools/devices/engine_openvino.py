"""Print, as JSON, the logits that OpenVINO's CPU plugin gives: MODEL PIXELS HEIGHT WIDTH.

With ONEDNN_MAX_CPU_ISA=AVX2 in the environment it takes the kernels of a CPU without VNNI.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import benchmarks  # noqa: F401 (it turns the telemetry of OpenVINO off)

# isort: split
import openvino


def main(model: str, pixels: str, height: str, width: str) -> None:
    """Print the logits of OpenVINO for each image, as JSON."""
    images = np.fromfile(pixels, np.uint8).reshape(-1, 1, int(height), int(width), 3)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    print(json.dumps([compiled({"pixels": image})[0][0].tolist() for image in images]))


if __name__ == "__main__":
    main(*sys.argv[1:])
