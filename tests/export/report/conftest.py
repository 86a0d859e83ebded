"""Results of an export that was never run, for the pages and sections that show them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.measure.drift import measure_drift
from calibration.measure.statistics import sqnr_interval
from export.report import SECTIONS
from export.report.changed_images import ChangedImages
from export.report.classes import Classes
from export.report.comparison import Comparison, Headlines
from export.report.conclusion import Conclusion, Usage
from export.report.evidence import Evidence
from export.report.node_placement import NodePlacement
from export.report.preprocessing import Preprocessing
from export.report.provenance import Provenance
from export.report.quantized_layers import LayerCounts, QuantizedLayers
from export.report.section import Results, VariantResult
from runtime.images.preprocess import Preprocess
from runtime.placement import DevicePart, Placement
from vit.data.datasets import Images

KINDS = ("attention.query", "attention.key", "attention.value", "attention.proj", "mlp.fc1", "mlp.fc2")

CPU = DevicePart(device="cpu", nodes=108, parts=108, share=1.0, operators={"Gemm": 2, "Add": 106})
PLACEMENT = Placement(parts=(CPU,), unlisted=0.0)
LAYERS = {
    "patch_embedding": 44.0,
    **{f"blocks.{block}.{kind}": 40.0 - block - i for block in range(3) for i, kind in enumerate(KINDS)},
    "head": 33.0,
}


@pytest.fixture
def results():
    """A function that makes results."""
    return _results


@pytest.fixture
def put():
    """A function that puts sections into results, in the place of those of their kind."""
    return _put


def _put(results, *sections):
    """Sections stand in the order of the page."""
    kept = [each for each in results.sections if type(each) not in set(map(type, sections))]
    order = sorted([*kept, *sections], key=lambda each: SECTIONS.index(type(each)))
    return replace(results, sections=tuple(order))


def _results(*, images=60, classes=5, changed=3, labeled=True, items=None, labels=None, variants=("int8",)):
    """`changed` images get another label from each variant; float32 is right on all images."""
    random = np.random.default_rng(0)
    targets = np.arange(images) % classes
    logits = random.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 6
    labels = tuple(labels or (f"class {i}" for i in range(classes)))
    if items is None:
        items = random.integers(0, 256, (images, 8, 8, 3), np.uint8)
    known = targets if labeled else None
    found = [_variant("float32", logits, 4_000_000, 20.0)]
    drifts, sqnr = {}, {}
    for name in variants:
        drifted = logits + 0.01 * random.standard_normal(logits.shape).astype(np.float32)
        drifted[np.arange(changed), (targets[:changed] + 1) % classes] += 20
        drifts[name], sqnr[name] = measure_drift(logits, drifted, known), sqnr_interval(logits, drifted)
        found.append(_variant(name, drifted, 1_000_000, 5.0))
    int8 = QuantizedLayers(
        counts=LayerCounts(
            int8_linears=18, float_linears=("head",), int8_products=0, float_products=("0.mix",)
        ),
        sqnr=LAYERS,
        kernels={"Gelu": 3, "Gemm": 1, "QGemm": 18},
        integer_kernels="18 of 18 linears in integer kernels",
    )
    empty = Results(
        producer="vit-edge 0.1.0",
        preprocess=Preprocess(size=(32, 32)),
        source={"checkpoint": "flowers", "config": {"width": 64, "image_size": [32, 32]}},
        environment={"cpu": "Some CPU", "vnni": False, "packages": {"numpy": "2.0"}},
        labels=labels,
        evaluation={
            "source": "other photos",
            "images": images,
            "labeled": labeled,
            "chosen": "by hand",
        },
        images=Images(items, known, labels, "other photos"),
        variants=tuple(found),
        sections=(),
    )
    return _put(
        empty,
        Conclusion(),
        Headlines(),
        ChangedImages(),
        Usage(),
        Comparison(drifts, sqnr),
        Preprocessing(),
        Classes(),
        NodePlacement(
            multiply_adds={each.variant: {"fc1": 1_200_000, "fc2": 34_567} for each in found},
            placement={each.variant: PLACEMENT for each in found},
        ),
        Provenance(
            made={"date": "2026-01-02 03:04 UTC", "command": "python -m export runs/flowers --quantize"},
            passes={"fold_normalization": 1},
            reference="torch",
            parity=2.5e-7,
        ),
        Evidence(calibration={"source": "photos", "images": 128, "target": "any-cpu"}),
        int8 if variants else QuantizedLayers(),
    )


def _variant(name, logits, size, latency):
    return VariantResult(
        variant=name,
        file=f"model.{name}.onnx",
        bytes=size,
        sha256="ab" * 32,
        logits=logits,
        latency={"median": latency, "min": 0.9 * latency},
    )
