"""Measure the drift figures that tests/drift compares with, and write them to tests/expected/drift.json.

Three models: one with random weights, the same on every machine; the digits example and a small ViT on
Fashion-MNIST, both trained now. INT8 is made for target any-cpu whatever the CPU: its integer sums are exact
everywhere, and only float rounding can differ between machines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from export.pipeline import Options, export
from export.sources.from_torch import export_checkpoint
from runtime.images.preprocess import Preprocess
from runtime.writing import temporary_folder
from tests.support.small_models import configs, lively
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.training.examples import train_example

EXPECTED = Path(__file__).parents[1] / "tests" / "expected" / "drift.json"
SAMPLES = 128

# How far a figure may be from the expected one, either way, before somebody must look. Training diverges
# between CPUs within a few steps, since floats are added in other orders: trained models have room for other
# weights of the same quality. The random model has room for rounding alone.
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "random": {"agreement": 1.0, "sqnr_db": 0.5, "float_top1": 1.0, "int8_top1": 1.0},
    "digits": {"agreement": 0.6, "sqnr_db": 3.0, "float_top1": 1.5, "int8_top1": 1.5},
    "fashion": {"agreement": 0.6, "sqnr_db": 3.0, "float_top1": 1.5, "int8_top1": 1.5},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the three models, write the figures, and return the exit code."""
    argparse.ArgumentParser(prog="python -m tools.expected_drift", description=__doc__).parse_args(arguments)
    torch.set_num_threads(1)  # as the tests do
    with temporary_folder() as folder:
        checkpoints = {
            "random": random_checkpoint(folder / "random"),
            "digits": train_example("digits", folder / "digits"),
            "fashion": train_example("fashion-quick", folder / "fashion"),
        }
        found = {
            name: {
                figure: {"value": round(value, 3), "tolerance": TOLERANCES[name][figure]}
                for figure, value in measure(name, checkpoint, folder / f"{name}-artifact").items()
            }
            for name, checkpoint in checkpoints.items()
        }
    EXPECTED.parent.mkdir(exist_ok=True)
    EXPECTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


def random_checkpoint(folder: Path) -> Path:
    """A model that learned nothing, with digits as its classes."""
    config = configs()["plain"]
    preprocess = Preprocess(size=config.image_size, resize="stretch", interpolation="bilinear")
    return save_checkpoint(folder, model=lively(config), preprocess=preprocess, labels="0123456789")


def measure(name: str, checkpoint: Path, out: Path) -> dict[str, float]:
    """Export for any CPU into `out` and give the drift figures: shares in per cent, SQNR in dB."""
    options = Options(
        quantize=True,
        calibration="fashion-mnist" if name == "fashion" else "digits",
        evaluation_samples=2000 if name == "fashion" else None,
        samples=SAMPLES,
        target="any-cpu",
        threads=2,
    )
    export(export_checkpoint(load_checkpoint(checkpoint)), out, options)
    return figures(json.loads((out / "report.json").read_text(encoding="utf-8")))


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a report.json that are compared."""
    drift = report["models"]["int8"]["drift"]
    return {
        "float_top1": drift["float_top1"],
        "int8_top1": drift["top1"],
        "agreement": drift["agreement"],
        "sqnr_db": drift["sqnr"],
    }


if __name__ == "__main__":
    sys.exit(main())
