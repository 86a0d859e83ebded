"""Results of an export that was never run, for the pages and sections that show them."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.measure.drift import measure_drift
from export.measure.results import Layers, Results, VariantResult
from runtime.images.preprocess import Preprocess
from vit.data.datasets import Images

KINDS = ("attention.query", "attention.key", "attention.value", "attention.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture
def results():
    """A function that makes results."""
    return _results


def _results(*, images=60, classes=5, changed=3, labeled=True, items=None, labels=None, variants=("int8",)):
    """`changed` images get another label from each variant; float32 is right on all images."""
    random = np.random.default_rng(0)
    targets = np.arange(images) % classes
    logits = random.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 6
    labels = tuple(labels or (f"class {i}" for i in range(classes)))
    if items is None:
        items = random.integers(0, 256, (images, 8, 8, 3), np.uint8)
    found = [_variant("float32", logits, None, 4_000_000, 20.0)]
    for name in variants:
        drifted = logits + 0.01 * random.standard_normal(logits.shape).astype(np.float32)
        drifted[np.arange(changed), (targets[:changed] + 1) % classes] += 20
        drift = measure_drift(logits, drifted, targets if labeled else None)
        found.append(_variant(name, drifted, drift, 1_000_000, 5.0))
    known = targets if labeled else None
    return Results(
        producer="vit-edge 0.1.0",
        made={"date": "2026-01-02 03:04 UTC", "command": "python -m export runs/flowers --quantize"},
        preprocess=Preprocess(size=(32, 32)),
        source={"checkpoint": "flowers", "config": {"width": 64, "image_size": [32, 32]}},
        environment={"cpu": "Some CPU", "vnni": False, "packages": {"numpy": "2.0"}},
        labels=labels,
        passes={"fold_normalization": 1},
        reference="torch",
        parity=2.5e-7,
        calibration={"source": "photos", "images": 128, "target": "any-cpu"},
        evaluation={
            "source": "other photos",
            "images": images,
            "labeled": labeled,
            "chosen": "by hand",
        },
        images=Images(items, known, labels, "other photos"),
        targets=known,
        variants=tuple(found),
        layers=Layers(int8_linears=18, float_linears=("head",), int8_products=0, float_products=("0.mix",)),
    )


def _variant(name, logits, drift, size, latency):
    layers = {
        f"blocks.{block}.{kind}": 40.0 - block - i for block in range(3) for i, kind in enumerate(KINDS)
    }
    return VariantResult(
        variant=name,
        file=f"model.{name}.onnx",
        bytes=size,
        sha256="ab" * 32,
        logits=logits,
        latency={"median": latency, "min": 0.9 * latency},
        drift=drift,
        kernels={"Gelu": 3, "Gemm": 1, "QGemm": 18} if drift else {},
        integer_kernels="18 of 18 linears in integer kernels" if drift else "",
        layers={"patch_embedding": 44.0, **layers, "head": 33.0} if drift else {},
    )
