"""Sections, and the results of an export that they show in report.json, in report.html and in the terminal.

A section is one module: what it measures, its fields of report.json, its lines of the terminal, and what its
template shows, which has the module's name and lies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.label_sets import average_precisions, differ, measure_f1
from export.measure.inference import Run, answer
from export.report import number_formats
from runtime.images.preprocess import Preprocess
from runtime.model_file.artifact import Variant
from vit.data.datasets import Images

S = TypeVar("S", bound="Section")


class Section:
    """One figure of the report. A subclass overrides what it has; its fields are what it measured."""

    folded: ClassVar[bool] = False  # whether the page shows it among the details
    template: ClassVar[str] = ""  # file name; empty for a section without a place on the page

    @classmethod
    def measure(cls, run: Run) -> Self | None:
        """Measure it; None for an export that has no such section."""
        return cls()

    def metadata(self, variant: str) -> Mapping[str, Any]:
        """Return the fields of `measured` in the metadata of a variant's file."""
        return {}

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the fields of report.json; what several sections say of one field is put together."""
        return {}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the lines of the terminal; `out` is the folder of the files."""
        return ()

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return what the template shows besides the section; None to leave the section out of the page."""
        return {}


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One model file and what it did on the evaluation images."""

    variant: Variant
    file: str  # its name in the artifact's folder
    bytes: int
    sha256: str
    logits: Array = field(repr=False)  # float32 [images, classes]
    latency: Mapping[str, float]  # ms of one image on one thread: min, median
    thresholds: tuple[float, ...] | None = None  # of the labels, where an image has several

    @cached_property
    def answers(self) -> tuple[Array, Array]:
        """The class with the highest logit of each image, or its label set, and a score; see `answer`."""
        return answer(self.logits, self.thresholds)

    @property
    def title(self) -> str:
        """The name for people."""
        return number_formats.NAMES[self.variant]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the model in report.json that no section has."""
        latency = dict(self.latency)
        return {"file": self.file, "bytes": self.bytes, "sha256": self.sha256, "latency_ms": latency}


@dataclass(frozen=True, kw_only=True)
class Results:
    """One export, from its source to measured files."""

    producer: str  # name and version of this program
    source: Mapping[str, Any]  # the checkpoint or the ONNX model: name, digest, architecture
    preprocess: Preprocess  # what the model sees of an image
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None  # of the labels, where an image has several
    environment: Mapping[str, Any]  # CPU and versions, on which the figures depend
    evaluation: Mapping[str, Any]  # source, number of images, whether their classes are known
    images: Images = field(repr=False)  # the evaluation images, in the order of the logits
    variants: tuple[VariantResult, ...]  # float32 first
    sections: tuple[Section, ...]

    def get(self, kind: type[S]) -> S:
        """Return the section of a class that every export has."""
        return next(each for each in self.sections if isinstance(each, kind))

    @property
    def targets(self) -> Array | None:
        """True classes of the images, int64 [images], or label sets, where they are known."""
        return self.images.targets

    def settle_answers(self, variant: VariantResult) -> Array:
        """Return the classes that a variant gives to the images, or label sets; see `Images.settle`."""
        return self.images.settle(variant.answers[0])

    def mark_right(self, variant: VariantResult) -> Array:
        """Return which images a variant gets right, bool [images]. The classes must be known."""
        return ~differ(self.settle_answers(variant), np.asarray(self.targets))

    def measure_accuracy(self, variant: VariantResult) -> dict[str, float]:
        """Return the top-1 of a variant, or mAP and F1 of label sets, in per cent; nothing if not known."""
        if self.targets is None:
            return {}
        if not self.images.several:
            return {"top1": 100 * float(np.mean(self.mark_right(variant)))}
        if not self.targets.any():
            return {}
        ranked = average_precisions(variant.logits, self.targets)
        f1 = measure_f1(variant.answers[0], self.targets)
        return {"map": 100 * float(ranked.mean()), "f1": 100 * f1}

    def name(self, given: Array, names: Sequence[str] | None = None) -> str:
        """Return an answer as text: the label of a class, or those of a label set, bool [classes]."""
        labels = self.labels if names is None else names
        if given.ndim == 0:
            return labels[int(given)]
        return ", ".join(labels[index] for index in np.flatnonzero(given).tolist()) or "no label"

    def find_changed(self, variant: VariantResult) -> Array:
        """Return the images whose label differs from float32's, highest score of float32 first."""
        if not self.labels:
            return np.zeros(0, np.int64)
        exact, scores = self.variants[0].answers
        rows = np.flatnonzero(differ(exact, variant.answers[0]))
        return rows[np.argsort(-scores[rows], kind="stable")]

    def count_same(self, variant: VariantResult) -> int:
        """Return on how many images the variant gives float32's label."""
        return len(self.images) - len(self.find_changed(variant))

    def speedup(self, variant: VariantResult) -> float:
        """Return the speed-up over float32: ratio of the median latencies."""
        return self.variants[0].latency["median"] / max(variant.latency["median"], 1e-9)

    def compression(self, variant: VariantResult) -> float:
        """Return how many times smaller than float32's the file is."""
        return self.variants[0].bytes / max(variant.bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the document of report.json."""
        document: dict[str, Any] = {
            "producer": self.producer,
            "source": dict(self.source),
            "preprocess": self.preprocess.to_dict(),
            "environment": dict(self.environment),
            "evaluation": dict(self.evaluation),
            "models": {each.variant: each.to_dict() for each in self.variants},
        }
        if self.thresholds is not None:
            document["thresholds"] = list(self.thresholds)
        for section in self.sections:
            _merge(document, section.to_dict(self))
        return document

    def to_html(self) -> str:
        """Return report.html, one page that needs no network: styles, charts and images are inside it."""
        from export.report import charts
        from vit.page.template import render_page  # needs Jinja, which measuring does not

        shown = [
            {"template": section.template, "folded": section.folded, "measured": section, **context}
            for section in self.sections
            if section.template and (context := section.context(self)) is not None
        ]
        return render_page(
            "export.report",
            "report.html.j2",
            {**number_formats.FILTERS, **charts.FILTERS},
            results=self,
            columns=[each.title for each in self.variants],
            names={each.variant: each.title for each in self.variants},
            sections=shown,
        )

    def to_text(self, out: Path) -> str:
        """Return what the terminal shows, for files in the folder `out`; the conclusion stands last."""
        first, *rest = self.sections
        lines = [line for section in (*rest, first) for line in section.lines(self, out)]
        return "\n".join([*lines, f"report: {out / 'report.html'}"])


def _merge(document: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Add fields to a document; objects that both have are merged."""
    for name, value in fields.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            _merge(document[name], value)
        else:
            document[name] = value
