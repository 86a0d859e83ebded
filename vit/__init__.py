"""The Vision Transformer in PyTorch: model, training, checkpoints.

    from vit import load_checkpoint, new_model, open_data, preset, train

In reading order:

    config         shape of a model, the named sizes of the literature, schedules of merged tokens
    model          the paper on one page: patch embedding, attention, MLP, block, ViT
    token_merging  the same model on fewer tokens, for training
    adapt          a trained model for other classes and another resolution
    document       the header of a checkpoint, read without torch
    checkpoint     one file with weights, config, preprocessing, labels and history
    run_folder     whether a run may start, resume or replace another one, and its metrics
    data/          images to train on, and their batches
    pretrained/    weights of other projects
    training/      from a recipe to a checkpoint
    class_head     a head without training, from words or from example images
    inspect/       summary, attention maps and plots of a model
    page/          parts of the HTML pages, for plots and for the export's report
    commands/      options and checks of python -m vit
    __main__       python -m vit train | import | summary | plots

The names below are imported when first asked for: configs and documents are read where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from vit.config import ConfigError, ViTConfig, make_config
    from vit.data.training_images import TrainingData, open_data
    from vit.document import CheckpointError
    from vit.model import ViT, new_model
    from vit.pretrained import import_model
    from vit.training.recipe import Recipe, preset
    from vit.training.train import train

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Recipe",
    "TrainingData",
    "ViT",
    "ViTConfig",
    "import_model",
    "load_checkpoint",
    "make_config",
    "new_model",
    "open_data",
    "preset",
    "save_checkpoint",
    "train",
]

_HOMES = {
    "vit.checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "vit.config": ("ConfigError", "ViTConfig", "make_config"),
    "vit.data.training_images": ("TrainingData", "open_data"),
    "vit.document": ("CheckpointError",),
    "vit.model": ("ViT", "new_model"),
    "vit.pretrained": ("import_model",),
    "vit.training.recipe": ("Recipe", "preset"),
    "vit.training.train": ("train",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
