"""Recipe of a training run, stored in every checkpoint, and the options of `python -m vit train`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from runtime.command.parser import REQUIRED, natural, number, option
from runtime.errors import InputError
from runtime.text import suggest


class RecipeError(InputError):
    """A recipe that cannot be followed."""


# Fields, what their numbers must be, and the same in words.
LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("epochs", "batch"), lambda n: n >= 1, "at least 1"),
    (("warmup", "smoothing", "erasing", "distill"), lambda x: 0 <= x <= 1, "between 0 and 1"),
    (("magnitude", "bad_images"), lambda x: 0 <= x <= 1, "between 0 and 1"),
    (("holdout", "ema", "beta2"), lambda x: 0 <= x < 1, "at least 0 and below 1"),
    (("crop",), lambda x: 0 < x <= 1, "above 0 and at most 1"),
    (("lr", "clip", "temperature", "layer_decay"), lambda x: 0 < x < math.inf, "positive and finite"),
    (("weight_decay", "mixup"), lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    (("early_stop", "shift", "randaugment", "views", "merge_tokens"), lambda n: n >= 0, "at least 0"),
    (("seed",), lambda n: 0 <= n < 1 << 63, "at least 0 and below 2^63"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run, except the model, the images and the device.

    Two CPU runs of the same recipe on the same images, with the same number of threads, give the
    same weights bit for bit.
    """

    name: str = "scratch"
    epochs: int = 100
    batch: int = 256  # of all processes together
    seed: int = 0
    holdout: float = 0.1  # share of the training images that choose the epoch, where there is no val split

    # AdamW (arXiv 1711.05101) with linear warm-up and a cosine to zero, as in ViT and DeiT
    lr: float = 1e-3
    weight_decay: float = 0.05  # on matrices only: not on biases, norms, tokens and positions
    warmup: float = 0.05  # share of all steps
    beta2: float = 0.999
    clip: float = 1.0  # the largest norm of the gradient
    layer_decay: float = 1.0  # factor of the learning rate per block from the head down (BEiT)
    merge_tokens: int = 0  # similar patches merged per block in the middle half of the blocks; 0 is off
    freeze: bool = False  # fit the head alone, a logistic regression on features that are computed once
    ema: float = 0.0  # decay of a moving average of the weights, which is then what is kept; 0 is off
    early_stop: int = 0  # epochs without a better accuracy before training ends; 0 is off

    # the loss
    smoothing: float = 0.1  # label smoothing
    balance: bool = False  # weigh each class by the inverse of its frequency
    mixup: float = 0.0  # alpha of the Beta distribution (arXiv 1710.09412); 0 is off
    distill: float = 0.5  # weight of the teacher's part of the loss, when there is a teacher
    temperature: float = 2.0  # of the teacher's and the student's probabilities
    views: int = 0  # distinct augmentations per image, so that the teacher runs once for each; 0: no limit

    # augmentation
    shift: int = 0  # pixels of padding before a random crop
    flip: bool = False  # left to right
    crop: float = 1.0  # smallest area of a random resized crop; 1 is off
    randaugment: int = 0  # operations per image (arXiv 1909.13719); 0 is off
    magnitude: float = 0.5  # their strength, 0 to 1
    erasing: float = 0.0  # probability of a random rectangle erased (arXiv 1708.04896)

    bad_images: float = 0.01  # largest share of undecodable images, which are listed and skipped
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
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Recipe:
        """Return the recipe of such a document; fields that it lacks have their defaults.

        Raises:
            RecipeError: for fields that no recipe has, and values that none can have.
        """
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(document) - names):
            raise RecipeError(f"unknown in a recipe: {', '.join(unknown)}; known: {', '.join(sorted(names))}")
        return cls(**document)


# Photos, from random weights: DeiT's recipe (arXiv 2012.12877, table 9) on a small scale.
SCRATCH = Recipe(ema=0.999, mixup=0.2, crop=0.3, flip=True, randaugment=2, erasing=0.25, early_stop=30)
# Photos, from pretrained weights: all weights are trained, lower blocks at a lower rate. Made for a few
# hundred images: small batches, an average of the last few dozen steps, much augmentation.
_AUGMENTED = Recipe(mixup=0.2, crop=0.5, flip=True, randaugment=1)
FINETUNE = replace(
    _AUGMENTED, name="finetune", epochs=10, batch=16, lr=7e-5, layer_decay=0.75, ema=0.95, early_stop=4
)
# Photos, from pre-trained weights, a new head on frozen features: under a second after the features.
PROBE = Recipe(name="probe", epochs=1, holdout=0.0, freeze=True, smoothing=0.0)
# From a float model, its teacher, to the same model in INT8: nothing is learned but to give the same answers.
QUANTIZE = Recipe(
    name="quantize", epochs=3, batch=16, lr=2e-6, weight_decay=0.0, ema=0.95, distill=1.0, smoothing=0.0
)
PROBE_FIELDS = frozenset(("freeze", "holdout", "seed", "balance", "bad_images"))  # that a probe reads
PRESETS: Mapping[str, Recipe] = {
    "scratch": SCRATCH, "finetune": FINETUNE, "probe": PROBE, "quantize": QUANTIZE,
}  # fmt: skip


def preset(name: str, **changes: Any) -> Recipe:
    """Return a preset with some fields changed, for example `preset("finetune", epochs=3)`.

    Raises:
        RecipeError: for a name that is no preset, and values that no recipe can have.
    """
    if name not in PRESETS:
        raise RecipeError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)


# --- Options ---

# How a value of --set is read, by the type of its field, and what is expected.
_VALUES: Mapping[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a word"),
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
}


def parse_change(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE of --set as a field of the recipe and a value of its type."""
    name, equals, value = text.partition("=")
    types = get_type_hints(Recipe)
    del types["name"]  # an example's brings its model along
    if name not in types:
        expected = f"expected NAME=VALUE with a NAME among {', '.join(types)}"
        raise argparse.ArgumentTypeError(f"{expected}, found {text!r}{suggest(name, types)}")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found a name alone; write {text}=VALUE")
    read, expected = _VALUES[types[name]]
    try:
        return name, read(value)
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"{name}: expected {expected}, found {value!r}") from error


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a ViT on images and keep the best checkpoint in OUT/model.safetensors."""

    data: str = option(
        REQUIRED,
        "PHOTOS/<class>/…, PHOTOS/train/<class>/… (with val or test beside train), a table of images with "
        "several labels each (.csv or .jsonl), "
        "a folder of IDX files, or one of the words digits and fashion-mnist",
    )
    out: Path = option(REQUIRED, "folder for the checkpoint, metrics.csv and the state of the run")
    model: str | None = option(
        None, "tiny, small, base, large or huge (default: tiny, or what the preset or --from brings)"
    )
    source: Path | None = option(
        None,
        "checkpoint to start from, or weights of another project (hf:OWNER/NAME: on the Hugging Face hub); "
        "it gets a new head for the new classes",
        flag="--from",
    )
    preset: str | None = option(
        None,
        "scratch, finetune, probe (a new head on frozen features), quantize (with --plan), or an example: "
        "digits, fashion, fashion-quick (default: quantize with --plan, finetune with --from, digits with "
        "--data digits, else scratch)",
    )
    image_size: int | None = option(
        None,
        "input resolution; position embeddings of --from are interpolated (default: of the model)",
        metavar="PIXELS",
    )
    white_level: int | None = option(
        None, "value of a 16-bit gray pixel that is white; 4095 for 12-bit data", parse=int
    )
    patch_size: int | None = option(
        None, "edge of a patch, for a model with random weights", metavar="PIXELS"
    )
    teacher: Path | None = option(None, "checkpoint with the same classes to distill from")
    plan: Path | None = option(
        None,
        "train the model of --from to give in INT8 the answers that it gives in float32: with the "
        "quantization of this plan.json, which an export of the model wrote",
        metavar="PLAN",
    )
    epochs: int | None = option(None, "number of epochs (default: of the preset)")
    batch: int | None = option(
        None, "images per step, of all processes together (default: of the preset, or fewer for few images)"
    )
    lr: float | None = option(
        None, "highest learning rate (default: of the preset)", parse=number(0, above=True)
    )
    seed: int | None = option(
        None, "seed of weights, order and augmentation (default: of the preset)", parse=natural
    )
    merge_tokens: int | None = option(
        None,
        "train with R similar patches merged per block in the middle half of the blocks, as "
        "python -m export --merge-tokens R merges them",
        metavar="R",
        parse=natural,
    )
    changes: tuple[tuple[str, Any], ...] = option(
        (),
        "change any field of the recipe, for example --set mixup=0.2; may be repeated; the run prints "
        "all fields at its start",
        metavar="NAME=VALUE",
        parse=parse_change,
        flag="--set",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "where to train (default: auto, a GPU if there is one)"
    )
    tensorboard: bool = option(False, "also write OUT/tensorboard")
    resume: Literal["yes", "auto"] | None = option(
        None,
        "continue the interrupted run in OUT; auto: or begin one (for torchrun --max-restarts)",
        alone="yes",
    )
    overwrite: bool = option(False, "replace the run in OUT")

    @property
    def recipe_changes(self) -> dict[str, Any]:
        """Fields of the recipe that these options set, with their values."""
        short = {name: getattr(self, name) for name in ("epochs", "batch", "lr", "seed", "merge_tokens")}
        return dict(self.changes) | {name: value for name, value in short.items() if value is not None}
