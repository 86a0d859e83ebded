"""Imported models: weights of Hugging Face, timm, torchvision and Google's original files, read exactly.

Nothing in the files is executed: safetensors, `weights_only=True` and `allow_pickle=False`.

In reading order:

    documents      the JSON beside the weights
    places         which file holds the weights
    files          tensors out of files of other projects
    wrappings      which set of weights, without the names in front
    formats        how each project names its tensors
    processors     the image processors that are followed, and their fields
    preprocessing  what the model expects of an image
    usual          what models expect whose source does not say it
    claims         what a description says beyond the tensors
    head_width     the number of attention heads that trained weights show
    shape          the configuration, from tensors and descriptions
    heads          a head that another took the place of
    arrange        what differs becomes an option of the model
    load           the whole import

The names below are imported when first asked for: `documents` and `preprocessing` serve ONNX models too,
where there may be no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.pretrained.documents import SourceError
    from vit.pretrained.load import ImportedModel, load_model, read_source

__all__ = ["ImportedModel", "SourceError", "load_model", "read_source"]


def __getattr__(name: str) -> Any:
    if name == "SourceError":
        from vit.pretrained.documents import SourceError

        return SourceError
    if name in __all__:
        from vit.pretrained import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
