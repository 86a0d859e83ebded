"""Evidence of an export: how well calibration fits the measured images, and warnings about all images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.measure.label_sets import average_precisions, interval_of_drop
from calibration.measure.per_layer import LayerClipping, measure_clipping
from calibration.measure.statistics import wilson_interval
from export.measure.inference import Run, top1
from export.report.section import Results, Section
from runtime.text import format_count
from vit.data.datasets import Images, describe_shared_names
from vit.data.public import public_name
from vit.data.training_images import digest_images

ALIKE = 4.0  # of 255: the mean difference of two images' thumbnails below which they show the same
COMPARED_IMAGES = 32  # calibration images that are compared with each other
CLIPPED = 0.001  # of a layer's activations: above, the range was made for other images
THUMBNAIL = 8  # pixels along an edge
WORST = 5
MEASURED, SEARCHED = "measured on", "searched on"  # uses of images that judge the model


@dataclass(frozen=True)
class Clipping:
    """Share of the activations of evaluation images outside the calibrated ranges."""

    images: int  # the first so many of the evaluation images
    layers: Mapping[str, LayerClipping]  # with one range; a layer with a range per row cannot be exceeded


@dataclass(frozen=True)
class EvidenceWarning:
    """One thing that a reader must know before the figures are believed."""

    sentence: str
    limits: tuple[str, ...] = ()  # options whose limits cannot be judged because of it


@dataclass(frozen=True, kw_only=True)
class Evidence(Section):
    """Calibration, the clipped activations, and the warnings."""

    calibration: Mapping[str, Any] = field(default_factory=dict)  # source, images and target, or the plan
    clipping: Clipping | None = None  # None without calibrated ranges, or where tokens are merged
    warnings: tuple[EvidenceWarning, ...] = ()
    folded = True
    template = "evidence.j2"

    @classmethod
    def measure(cls, run: Run) -> Evidence:
        """Count the clipped activations of a few images, and look for what the images cannot show."""
        source, images, clipping = run.source, run.images, _measure_clipping(run)
        few = images.calibration.subset(range(min(COMPARED_IMAGES, len(images.calibration))))
        calibrated = run.options.quantize and run.options.plan is None
        warnings = find_evidence_warnings(
            images.evaluation,
            images.search,
            source.labels,
            run.logits["float32"],
            trained_on=source.trained_on,
            clipped={} if clipping is None else clipping.layers,
            pixels=[image for batch in run.batches(few) for image in batch] if calibrated else [],
        )
        return cls(calibration=_describe_calibration(run), clipping=clipping, warnings=warnings)

    @property
    def sentences(self) -> list[str]:
        """The warnings as sentences."""
        return [each.sentence for each in self.warnings]

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the sentences, the calibration and the clipped activations."""
        document = {"warnings": self.sentences, "calibration": dict(self.calibration)}
        if self.clipping is None:
            return document
        shares = {name: float(f"{each.share:.3g}") for name, each in self.clipping.layers.items()}
        return {**document, "clipping": {"images": self.clipping.images, "layers": shares}}

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the share of clipped activations by layer, most clipped first; None without INT8."""
        if all(each.variant != "int8" for each in results.variants):
            return None
        layers = {} if self.clipping is None else self.clipping.layers
        shares = sorted(((each.share, name) for name, each in layers.items()), key=lambda pair: -pair[0])
        return {"shares": shares, "limit": CLIPPED, "worst": WORST}


def find_evidence_warnings(
    evaluation: Images,
    search: Images | None,
    labels: Collection[str],
    logits: Array,
    *,
    trained_on: Collection[str] = (),
    clipped: Mapping[str, LayerClipping] | None = None,
    pixels: Iterable[Array] = (),
) -> tuple[EvidenceWarning, ...]:
    """Return what the images of an export cannot show, each with the limits that it leaves open.

    `logits` are those of float32 on the evaluation images, [images, classes]; `trained_on` has the digests
    of the training images; `pixels` are some calibration images as the model sees them, `uint8 [H, W, 3]`.
    """
    both = {MEASURED: evaluation, SEARCHED: search}
    judging = {what: images for what, images in both.items() if images is not None and len(images)}
    found = [
        EvidenceWarning(_warn_alike(list(pixels))),
        EvidenceWarning(_warn_clipped(evaluation, clipped or {})),
        EvidenceWarning(_warn_chance(evaluation, len(labels), logits), ("--max-drift",)),
        _warn_trained_on(judging, trained_on) or EvidenceWarning(_warn_training_folder(judging)),
        EvidenceWarning(describe_shared_names(evaluation)),
    ]
    return tuple(each for each in found if each.sentence)


def _measure_clipping(run: Run) -> Clipping | None:
    if run.int8 is None or run.int8.quantized is None or run.int8.merges:
        return None
    some = run.few_images()
    model, plan = run.source.int8_graph, run.int8.quantized.plan
    return Clipping(len(some), measure_clipping(model, plan, run.batches(some), threads=run.options.threads))


def _describe_calibration(run: Run) -> dict[str, Any]:
    if run.int8 is None:
        return {}
    if run.options.plan is not None:
        return {"plan": run.options.plan.name, "target": run.int8.target}
    calibration = run.images.calibration
    return {"source": public_name(calibration.name), "images": len(calibration), "target": run.int8.target}


def _warn_alike(pixels: list[Array]) -> str:
    if len(pixels) < 2:
        return ""
    small = np.stack([_thumbnail(each) for each in pixels])
    spread = float(np.abs(small - small.mean(axis=0)).mean())
    if spread >= ALIKE:
        return ""
    return (
        f"the calibration images are all alike (mean difference {spread:.1f} of 255, expected {ALIKE:.0f} or "
        "more): ranges made from them will not fit others; give images like those the model will meet"
    )


def _thumbnail(pixels: Array) -> Array:
    """Return the mean colors of a grid of cells, float64 [cells, cells, 3]."""
    rows, columns = (np.array_split(np.arange(edge), min(THUMBNAIL, edge)) for edge in pixels.shape[:2])
    means = [[pixels[np.ix_(row, column)].mean(axis=(0, 1)) for column in columns] for row in rows]
    return np.asarray(means)


def _warn_clipped(evaluation: Images, clipped: Mapping[str, LayerClipping]) -> str:
    beyond = {name: each for name, each in clipped.items() if each.share > CLIPPED}
    if not beyond:
        return ""
    name, worst = max(beyond.items(), key=lambda item: item[1].share)
    where = ", ".join(evaluation.public_name(index) for index in worst.images)
    return (
        f"the evaluation images exceed what calibration saw in {format_count(len(beyond), 'layer')} "
        f"(limit: {100 * CLIPPED:g} % of the activations), most in {name} ({100 * worst.share:.2f} %; "
        f"images: {where}); calibrate with images like these"
    )


def _warn_chance(evaluation: Images, classes: int, logits: Array) -> str:
    targets = evaluation.targets
    if targets is None or classes < 2:
        return ""
    if evaluation.several:
        return _warn_chance_of_sets(targets, logits)
    guesses, total = top1(logits)[0], len(logits)
    hits = int((evaluation.settle(guesses) == targets).sum())
    if wilson_interval(hits, total).low > 1 / classes:
        return ""
    advice = "are the labels in the order that the model was trained with?"
    for shift in (1, -1):
        shifted = int((guesses == targets + shift).sum())
        if wilson_interval(shifted, total).low > max(2 / classes, hits / total):
            share = 100 * shifted / total
            advice = f"with class indices shifted by {shift:+d} it is {share:.1f} %: {advice}"
    return (
        f"the float model itself is right on {100 * hits / total:.1f} % of the images, no better than "
        f"chance ({100 / classes:.1f} %); {advice}"
    )


def _warn_chance_of_sets(targets: Array, logits: Array) -> str:
    """Warn where labels are ranked as at random, with the share of their images as their precision."""
    if not targets.any():
        return ""
    share = float(targets.mean(axis=0)[targets.any(axis=0)].mean())
    found = float(average_precisions(logits, targets).mean())
    if interval_of_drop(np.zeros_like(logits), logits, targets).high < 0:
        return ""
    return (
        f"the float model itself has an mAP of {100 * found:.1f} %, no better than "
        f"chance ({100 * share:.1f} %); are the labels in the order that the model was trained with?"
    )


def _warn_trained_on(judging: Mapping[str, Images], trained_on: Collection[str]) -> EvidenceWarning | None:
    parts = {}
    for what, images in judging.items() if trained_on else ():
        if count := sum(digest in trained_on for digest in digest_images(images)):
            parts[what] = f"{count:,} of the {format_count(len(images), 'image')} {what}"
    if not parts:
        return None
    # The images of a search come from the calibration source.
    options = {MEASURED: "--evaluate", SEARCHED: "another --calibration"}
    return EvidenceWarning(
        f"the model was trained on {' and '.join(parts.values())}, so their accuracy is too good; give "
        f"others ({', '.join(options[what] for what in parts)})",
        ("--max-drift",) if MEASURED in parts else (),
    )


def _warn_training_folder(judging: Mapping[str, Images]) -> str:
    found: dict[str, list[str]] = {}
    for what, images in judging.items():
        parts = Path(images.name).parts
        if any(part.lower() in ("train", "training") for part in parts[-2:]):
            found.setdefault(public_name(images.name), []).append(what)
    if not found:
        return ""
    where = "; ".join(f"{' and '.join(what)} lie in {place}" for place, what in found.items())
    return f"the images {where}: if the model was trained on them, their accuracy is too good"
