"""Results of an export: everything that report.json, report.html and the terminal show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.drift import Drift
from calibration.measure.per_layer import LayerClipping
from export.measure.classes import ClassResult, by_class
from export.measure.embeddings import EmbeddingDrift
from export.measure.merging import Merging
from export.measure.reliability import Reliability
from export.measure.verdict import Verdict
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import Variant
from vit.data.datasets import Images


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One model file and what it did on the evaluation images."""

    variant: Variant
    file: str  # its name in the artifact's folder
    bytes: int
    sha256: str
    logits: Array = field(repr=False)  # float32 [images, classes]
    latency: Mapping[str, float]  # ms of one image on one thread: min, median
    drift: Drift | None = None  # against float32; None for float32 itself
    # operator counts of ONNX Runtime's optimized graph
    kernels: Mapping[str, int] = field(default_factory=dict)
    integer_kernels: str = ""  # "74 of 74 linears and 24 of 24 products in integer kernels"
    layers: Mapping[str, float] = field(default_factory=dict)  # linear → SQNR of its output in dB


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers of the INT8 model: how many are quantized, all in integer kernels, and which are not."""

    int8_linears: int
    float_linears: tuple[str, ...]  # by the plan, or since no rewrite made them quantizable
    int8_products: int
    float_products: tuple[str, ...]

    @property
    def in_float(self) -> tuple[str, ...]:
        """Return the names of all layers that INT8 leaves in float32."""
        return self.float_linears + self.float_products

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        return {
            "linears": {"int8": self.int8_linears, "float32": len(self.float_linears)},
            "products": {"int8": self.int8_products, "float32": len(self.float_products)},
        }


@dataclass(frozen=True)
class Clipping:
    """Share of the activations of evaluation images outside the calibrated ranges."""

    images: int  # the first so many of the evaluation images
    layers: Mapping[str, LayerClipping]  # with one range; a layer with a range per row cannot be exceeded

    def to_dict(self) -> dict[str, Any]:
        """Return the document for report.json."""
        shares = {name: float(f"{each.share:.3g}") for name, each in self.layers.items()}
        return {"images": self.images, "layers": shares}


@dataclass(frozen=True, kw_only=True)
class Results:
    """One export, from checkpoint to measured files."""

    producer: str
    made: Mapping[str, str]  # date (UTC) and, from a command line, command
    source: Mapping[str, Any]  # the checkpoint: name, digest, architecture
    preprocess: Preprocess  # what the model sees of an image
    environment: Mapping[str, Any]  # CPU, versions
    labels: tuple[str, ...]
    passes: Mapping[str, int]  # rewrite → places changed
    reference: str  # the model that the float32 file must equal: "torch", "the original ONNX"
    parity: float  # float32 file against the reference: largest difference of a logit over the largest logit
    calibration: Mapping[str, Any]  # source, number of images and target, or the plan that was given
    evaluation: Mapping[str, Any]  # source, number of images, whether their classes are known
    images: Images = field(repr=False)  # the evaluation images, in the order of the logits
    targets: Array | None = field(repr=False)  # int64 [images], indices into labels, where known
    variants: tuple[VariantResult, ...]  # float32 first
    search: Mapping[str, Any] = field(default_factory=dict)  # what a budget took back to float, and its cost
    merging: Merging | None = None  # what token merging does, where int8 merges tokens
    reliability: Reliability | None = None  # of the scores; None where too few classes are known
    # Of each variant; None for a model without the output.
    embeddings: Mapping[str, EmbeddingDrift] | None = None
    verdict: Verdict = field(default_factory=Verdict)  # on the limits that were set
    warnings: tuple[str, ...] = ()  # doubts about the evidence, a sentence each
    clipping: Clipping | None = None  # None without calibrated ranges, or where tokens are merged
    layers: Layers | None = None  # of INT8; None without it

    @property
    def other_warnings(self) -> tuple[str, ...]:
        """Warnings that the verdict does not say already."""
        return tuple(each for each in self.warnings if each not in self.verdict.text)

    def given(self, variant: VariantResult) -> Array:
        """Classes that a variant gives to the images, int64 [images]; see `Images.settle`."""
        return self.images.settle(variant.logits.argmax(axis=1))

    def right(self, variant: VariantResult) -> Array:
        """Which images a variant gets right, bool [images]. The classes must be known."""
        return np.asarray(self.given(variant) == self.targets)

    def changed(self, variant: VariantResult) -> list[dict[str, Any]]:
        """The images whose label differs from float32's, most confident first."""
        if not self.labels:
            return []
        before, after = softmax(self.variants[0].logits), softmax(variant.logits)
        rows = np.flatnonzero(before.argmax(axis=1) != after.argmax(axis=1))
        found = []
        for row in rows[np.argsort(-before[row_max(before, rows)], kind="stable")]:
            entry: dict[str, Any] = {"image": self.images.public_name(int(row)), "row": int(row)}
            for name, scores in (("float32", before[row]), (variant.variant, after[row])):
                index = int(scores.argmax())
                entry[name] = {
                    "label": self.labels[index],
                    "index": index,
                    "score": round(float(scores[index]), 4),
                }
            if self.targets is not None:
                entry["truth"] = self.labels[int(self.targets[row])]
            found.append(entry)
        return found

    def classes(self) -> list[ClassResult]:
        """Return the accuracy of each class that has an image; nothing where classes are not known."""
        if self.targets is None:  # there may be no logits
            return []
        return by_class({each.variant: self.given(each) for each in self.variants}, self.targets, self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The document of report.json."""
        classes = self.classes()
        return {
            "producer": self.producer,
            "made": dict(self.made),
            "verdict": self.verdict.to_dict(),
            "warnings": list(self.warnings),
            "source": dict(self.source),
            "preprocess": self.preprocess.to_dict(),
            "environment": dict(self.environment),
            "passes": dict(self.passes),
            "parity": {"reference": self.reference, "difference": self.parity},
            "calibration": dict(self.calibration),
            **({"clipping": self.clipping.to_dict()} if self.clipping is not None else {}),
            **({"search": dict(self.search)} if self.search else {}),
            **({"merging": self.merging.to_dict(self.images)} if self.merging is not None else {}),
            **({"reliability": self.reliability.to_dict()} if self.reliability is not None else {}),
            **({"embeddings": self._embeddings()} if self.embeddings is not None else {}),
            "evaluation": dict(self.evaluation),
            **({"layers": self.layers.to_dict()} if self.layers is not None else {}),
            "float_layers": [] if self.layers is None else list(self.layers.in_float),
            **({"classes": [each.to_dict() for each in classes]} if classes else {}),
            "models": {each.variant: self._variant(each) for each in self.variants},
        }

    def _embeddings(self) -> dict[str, Any]:
        return {
            name: {**each.to_dict(), "worst_image": self.images.public_name(each.worst_image)}
            for name, each in (self.embeddings or {}).items()
        }

    def _variant(self, result: VariantResult) -> dict[str, Any]:
        document: dict[str, Any] = {"file": result.file, "bytes": result.bytes, "sha256": result.sha256}
        document["latency_ms"] = dict(result.latency)
        if self.targets is not None:
            document["top1"] = 100 * float(np.mean(self.right(result)))
        if result.drift is not None:
            document["drift"] = result.drift.to_dict()
            document["changed"] = self.changed(result)
        if result.kernels:
            document["kernels"] = dict(result.kernels)
            document["integer_kernels"] = result.integer_kernels
        if result.layers:
            document["layers_sqnr_db"] = {name: round(value, 2) for name, value in result.layers.items()}
        return document


def softmax(logits: Array) -> Array:
    """Scores of each row, `float64 [images, classes]`."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def row_max(scores: Array, rows: Array) -> tuple[Array, Array]:
    """Indices of the largest score of each of `rows`, to sort by."""
    return rows, scores[rows].argmax(axis=1)
