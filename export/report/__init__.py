"""The report of an export: its sections, and what shows them.

In reading order:

    section           section and results; report.json, report.html and the terminal walk the sections
    number_formats    numbers and names as text
    charts            charts as inline SVG
    conclusion        verdict on the limits, what to do now, and how to use the file
    comparison        each variant beside float32: labels, logits, latency and size
    changed_images    images whose label changed, and images that float32 gets wrong
    preprocessing     preprocessing in words, and one image before and after it
    classes           accuracy of each class, and which is taken for which
    reliability       temperature of the scores
    embedding_drift   drift of embeddings in their own terms
    merging_effect    token merging: dense and merged INT8, and which patches merged
    npu_simulation    drift in Qualcomm's simulator of an NPU
    provenance        how the files were made
    evidence          how well calibration fits the measured images, and warnings
    quantized_layers  layers in INT8 and in float32, and the drift of each
    self_tests        test images in the model files, with which a device can be checked
    field_statistics  statistics of the images in the model files, with which a device finds drift
    node_placement    where each variant ran, and its multiply-adds

A new figure is one module with its template of the same name, and one line in `SECTIONS`.
"""

from __future__ import annotations

from export.report.changed_images import ChangedImages
from export.report.classes import Classes
from export.report.comparison import Comparison, Headlines
from export.report.conclusion import Conclusion, Usage
from export.report.embedding_drift import EmbeddingDrift
from export.report.evidence import Evidence
from export.report.field_statistics import FieldStatisticsSection
from export.report.merging_effect import MergingEffect
from export.report.node_placement import NodePlacement
from export.report.npu_simulation import NpuSimulation
from export.report.preprocessing import Preprocessing
from export.report.provenance import Provenance
from export.report.quantized_layers import QuantizedLayers
from export.report.reliability import Reliability
from export.report.section import Section
from export.report.self_tests import SelfTests

# In the order of the page. The terminal shows the first one last, next to the prompt.
SECTIONS: tuple[type[Section], ...] = (
    Conclusion,
    Headlines,
    ChangedImages,
    Usage,
    Comparison,
    Preprocessing,
    Classes,
    Reliability,
    EmbeddingDrift,
    MergingEffect,
    NpuSimulation,
    SelfTests,
    FieldStatisticsSection,
    Provenance,
    Evidence,
    QuantizedLayers,
    NodePlacement,
)
