"""Imported models: weights of Hugging Face, timm, torchvision and Google's original files, read exactly.

Nothing in the files is executed: safetensors, `weights_only=True` and `allow_pickle=False`.

In reading order:

    hub            download by a name on the Hugging Face hub
    weight_files   the file that holds the weights, and its tensors
    state_dict     one set of weights, without the names that wrappers put in front
    formats        names of the tensors in each source, and their names here
    description    the documents beside the weights, and facts that no tensor has
    preprocessing  resizing and normalization, stated or assumed
    config         the configuration, from tensors and description
    convert        from the source's tensors to those of the model here
    load           the whole import
    text_tower     vectors of classes in words, from the text tower of CLIP or SigLIP

The names below are imported when first asked for: `hub`, `description` and `preprocessing` serve ONNX models
too, where there may be no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.pretrained.description import SourceError
    from vit.pretrained.load import ImportedModel, import_model, import_vit

__all__ = ["ImportedModel", "SourceError", "import_model", "import_vit"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "description" if name == "SourceError" else "load"
    return getattr(import_module(f"vit.pretrained.{home}"), name)
