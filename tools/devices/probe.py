"""Print, as one JSON line, what an artifact's INT8 file does on the CPU at hand beside its float file.

Runs on the emulated CPU, with the packages of the runtime and those of the kernel check alone.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measure.verify import verify_kernels
from calibration.plan import QuantizationPlan
from runtime import check_model, read_metadata
from runtime.cpu import cpu_kind
from runtime.self_test.document import INTEGER_KERNELS
from runtime.session import needs_exact_kernels, open_session


def probe(folder: Path, images: Path) -> dict[str, Any]:
    """Run both files over all images, one at a time, with one thread.

    Args:
        folder: with model.onnx, model.int8.onnx and plan.json.
        images: a folder of images.

    Returns:
        The CPU, the target, the labels of both files, the SQNR of the INT8 logits in dB, and the verdicts of
        the self-tests.
    """
    logits, labels = {}, {}
    paths = sorted(images.iterdir())
    for name in ("model.onnx", "model.int8.onnx"):
        metadata = read_metadata(folder / name)
        session = open_session(folder / name, device="cpu", threads=1, target=metadata.target)
        rows = [session.run(None, {"pixels": metadata.preprocess(path)[None]})[0] for path in paths]
        logits[name] = np.concatenate(rows)
        labels[name] = [metadata.labels[index] for index in logits[name].argmax(1)]
    exact, found = logits["model.onnx"], logits["model.int8.onnx"]
    plan = QuantizationPlan.from_json((folder / "plan.json").read_text())
    kernels = verify_kernels((folder / "model.int8.onnx").read_bytes(), plan)  # raises for a float kernel
    return {
        "machine": platform.machine(),
        "cpu_kind": cpu_kind(),
        "target": metadata.target,
        "exact_kernels_asked": needs_exact_kernels(metadata.target),
        "sqnr": float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())),
        "float_labels": labels["model.onnx"],
        "labels": labels["model.int8.onnx"],
        "linears": len(kernels.linears),
        "integer": sum(kernel in INTEGER_KERNELS for kernel in kernels.linears.values()),
        "checks": [check_model(folder / name, baseline=1.0).verdict for name in logits],
    }


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), Path(sys.argv[2]))))
