"""Options of an export, and the limits that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibration.search import Budget
from export.image_sets import ExportImages, choose_evaluation_images, choose_images, use_model_classes
from runtime.cpu import cpu_kind
from runtime.errors import InputError
from runtime.model_file.targets import Target, target_for
from vit.data.datasets import DataError

MERGE_FLOOR = 20.0  # dB; a ViT-B/16 on ImageNet photos: 16 tokens per block 22.9 dB, 27 16.0 dB


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `python -m export`. Drift limits are in percentage points and percent."""

    calibration: str | Path | None = None
    evaluation: str | Path | None = None
    samples: int = 128
    evaluation_samples: int | None = None
    quantize: bool = True
    half: bool = False
    target: Target = "any-cpu"
    keep_float: tuple[str, ...] = ()
    plan: Path | None = None  # write this plan, and calibrate nothing
    max_drift: float | None = None
    min_agreement: float | None = None
    min_sqnr: float | None = None  # dB
    embedding: bool = False  # give out what the head reads, beside the logits
    min_cosine: float | None = None  # of the embeddings to float's, the mean
    merge_tokens: int | Literal["auto"] | None = None  # per block; "auto": as many as the limits allow
    threads: int | None = None
    command: str = ""  # the command line for the report, with nothing private in it

    @property
    def budget(self) -> Budget:
        """Limits for the drift of the logits."""
        return Budget(max_drift=self.max_drift, min_agreement=self.min_agreement, min_sqnr=self.min_sqnr)

    @property
    def merge_budget(self) -> Budget | None:
        """Limits for a search of a merging schedule; None where nothing is searched.

        Few images cannot show half a point of top-1, so the noise of the logits is always limited.
        """
        if self.merge_tokens != "auto":
            return None
        return replace(self.budget, min_sqnr=MERGE_FLOOR if self.min_sqnr is None else self.min_sqnr)

    @property
    def searches(self) -> bool:
        """True if a plan within the limits is searched for; a given plan is only checked against them."""
        return self.quantize and self.plan is None and (self.merge_budget or self.budget).limits


def choose_target() -> Target:
    """Return the INT8 target for the CPU at hand."""
    return target_for(cpu_kind())


def images_of(options: Options, labels: tuple[str, ...] | None) -> ExportImages:
    """Choose the images that an export is made with.

    Args:
        options: of the export.
        labels: of the model; None where they are not known yet.

    Raises:
        DataError: for images that cannot be used.
    """
    if options.calibration is not None:
        chosen = choose_images(
            options.calibration,
            options.evaluation,
            samples=options.samples,
            evaluation_samples=options.evaluation_samples,
            search=options.searches,
        )
    elif options.evaluation is not None and (options.plan is not None or not options.quantize):
        chosen = choose_evaluation_images(options.evaluation, options.evaluation_samples)
    else:
        found = "none given" if options.evaluation is None else "none to calibrate with"
        raise DataError(
            f"expected images like those the model will meet, found {found}; add --calibration IMAGES"
        )
    if labels is not None:
        chosen = use_model_classes(chosen, labels)
    for each in (chosen.evaluation, chosen.search):
        if options.max_drift is not None and each is not None and each.targets is None:
            raise DataError(
                f"{each.name}: --max-drift needs known classes, images in folders named as "
                "the classes; for loose images use --min-agreement"
            )
    return chosen


def check_outputs(labels: tuple[str, ...], options: Options) -> None:
    """Refuse limits for an output that the model does not give.

    Args:
        labels: of the model; empty for one without classes, which gives an embedding.
        options: of the export.

    Raises:
        InputError: saying what to limit in its place.
    """
    if options.min_cosine is not None and labels and not options.embedding:
        raise InputError("--min-cosine limits the drift of embeddings, the model gives none; add --embedding")
    if not labels and (options.budget.limits or options.merge_tokens is not None):
        raise InputError(
            "the model has no classes: --max-drift, --min-agreement, --min-sqnr and --merge-tokens judge "
            "logits; limit the drift of its embeddings with --min-cosine"
        )
