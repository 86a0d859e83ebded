"""Recipe of a training run, as plain data that is stored in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from runtime.errors import InputError


class RecipeError(InputError):
    """A recipe that cannot be followed."""


# Fields, what their numbers must be, and the same in words.
LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("epochs", "batch"), lambda n: n >= 1, "at least 1"),
    (
        ("warmup", "smoothing", "erasing", "distill", "magnitude", "bad_images"),
        lambda x: 0 <= x <= 1,
        "between 0 and 1",
    ),
    (("holdout", "ema", "beta2"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("crop",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
    (("lr", "clip", "temperature", "layer_decay"), lambda x: 0 < x < math.inf, "positive and finite"),
    (("weight_decay", "mixup"), lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    (("early_stop", "shift", "randaugment", "views", "merge_tokens"), lambda n: n >= 0, "at least 0"),
    (("seed",), lambda n: 0 <= n < 1 << 63, "at least 0 and below 2^63"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides how training runs, next to the model, the images and the device.

    Two CPU runs of the same recipe on the same images, with the same number of threads, give the
    same weights bit for bit.
    """

    name: str = "scratch"
    epochs: int = 100
    batch: int = 256  # of all processes together
    seed: int = 0
    # share of the training images that choose the best epoch, when there is no val split
    holdout: float = 0.1

    # AdamW (arXiv 1711.05101) with linear warm-up and a cosine to zero, as in ViT and DeiT
    lr: float = 1e-3
    weight_decay: float = 0.05  # on matrices only: not on biases, norms, tokens and positions
    warmup: float = 0.05  # share of all steps
    beta2: float = 0.999
    clip: float = 1.0  # the largest norm of the gradient
    layer_decay: float = 1.0  # the learning rate falls by this factor a block from the head down (BEiT)
    merge_tokens: int = 0  # similar patches merged per block in the middle half of the blocks; 0 is off
    freeze: bool = False  # fit the head alone, a logistic regression on features that are computed once
    ema: float = 0.0  # decay of a moving average of the weights, which is then what is kept; 0 is off
    # epochs without a better accuracy before training ends; 0 is off
    early_stop: int = 0

    # the loss
    smoothing: float = 0.1  # label smoothing
    balance: bool = False  # weigh each class by the inverse of its frequency
    mixup: float = 0.0  # alpha of the Beta distribution (arXiv 1710.09412); 0 is off
    distill: float = 0.5  # weight of the teacher's part of the loss, when there is a teacher
    temperature: float = 2.0  # of the teacher's and the student's probabilities
    views: int = 0  # distinct augmentations an image, so that the teacher is asked once for each; 0: no limit

    # augmentation
    shift: int = 0  # random crop after padding by so many pixels
    flip: bool = False  # left to right
    crop: float = 1.0  # smallest area of a random resized crop; 1 is off
    randaugment: int = 0  # operations an image (arXiv 1909.13719); 0 is off
    magnitude: float = 0.5  # their strength, 0 to 1
    erasing: float = 0.0  # probability of a random rectangle erased (arXiv 1708.04896)

    bad_images: float = 0.01  # share of undecodable images that is listed and skipped; more is an error
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 on CUDA, otherwise float32
    compile: bool = False  # torch.compile; pays on CUDA and for long runs

    def __post_init__(self) -> None:
        for names, fits, words in LIMITS:
            for name in names:
                if not fits(found := getattr(self, name)):
                    raise RecipeError(f"{name} must be {words}, found {found}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise RecipeError(f"precision must be auto, float32 or bfloat16, found {self.precision!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Recipe:
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(document) - known):
            raise RecipeError(f"unknown in a recipe: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**document)


# Photos, from nothing: DeiT's recipe (arXiv 2012.12877, table 9) on a small scale.
SCRATCH = Recipe(
    name="scratch",
    epochs=100,
    ema=0.999,
    mixup=0.2,
    crop=0.3,
    flip=True,
    randaugment=2,
    erasing=0.25,
    early_stop=30,
)
# Photos, from pre-trained weights, every weight adapted a little (the lower the block, the less). Made for
# a few hundred images: small batches, an average of the last few dozen steps, much augmentation.
FINETUNE = Recipe(
    name="finetune",
    epochs=10,
    batch=16,
    lr=7e-5,
    layer_decay=0.75,
    ema=0.95,
    mixup=0.2,
    crop=0.5,
    flip=True,
    randaugment=1,
    early_stop=4,
)
# Photos, from pre-trained weights, a new head on frozen features: under a second after the features.
PROBE = Recipe(name="probe", epochs=1, holdout=0.0, freeze=True, smoothing=0.0)
PROBE_FIELDS = frozenset(("freeze", "holdout", "seed", "balance", "bad_images"))  # that a probe reads
PRESETS: Mapping[str, Recipe] = {"scratch": SCRATCH, "finetune": FINETUNE, "probe": PROBE}


def preset(name: str, **changes: Any) -> Recipe:
    """A preset with some fields changed, e.g. `preset("finetune", epochs=3)`."""
    if name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
