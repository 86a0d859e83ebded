"""Weights from elsewhere: Hugging Face, timm, torchvision and Google's original files, read exactly.

Nothing in the files is executed: safetensors, `weights_only=True` and `allow_pickle=False`.

In reading order:

    files          tensors and JSON out of files of other projects
    formats        how each project names its tensors
    preprocessing  what the model expects of an image
    load           the whole import
"""

from vit.pretrained.load import ImportedModel, SourceError, load_model, read_source

__all__ = ["ImportedModel", "SourceError", "load_model", "read_source"]
