"""Options of python -m vit import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.command.parser import REQUIRED, argument, option


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Turn weights of another project into a checkpoint; nothing in them is executed."""

    source: Path = argument(
        REQUIRED,
        "folder of Hugging Face or timm, OWNER/NAME[@REVISION] of the Hugging Face hub, or a .safetensors, "
        ".pth, .ckpt, .bin or .npz file; with --examples a checkpoint too",
        metavar="SOURCE",
    )
    out: Path = option(REQUIRED, "folder for the checkpoint")
    labels: Path | None = option(None, "names of the classes, one per line, class 0 first", metavar="FILE")
    classes: str | None = option(
        None,
        "classes in words for a CLIP or SigLIP model: a file with one per line, or a list with commas",
        metavar="WORDS",
    )
    template: tuple[str, ...] = option(
        (),
        "text that a class is written into, in the place of {}; may be repeated (default: a photo of a {})",
        metavar="TEXT",
    )
    examples: Path | None = option(
        None,
        "folder with a folder of a few images for each class; with --add-class, the images of one class",
        metavar="FOLDER",
    )
    add_class: str | None = option(
        None, "add this class to SOURCE, a checkpoint whose classes came from --examples", metavar="LABEL"
    )
    heads: int | None = option(None, "number of attention heads, if the source does not say it")
    # Those of vit.config, whose import costs --help time.
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] | None = option(
        None, "activation of the MLPs, if the source does not say it"
    )
    weights: str | None = option(
        None,
        "weights to read from a file that holds several sets (default: a moving average, if there is one)",
        metavar="NAME",
    )
