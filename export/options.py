"""Options of an export, and the limits that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibration.search import Budget
from runtime.model_file.targets import Target

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
