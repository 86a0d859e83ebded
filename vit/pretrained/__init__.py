"""Weights from elsewhere: Hugging Face, timm, torchvision and Google's original files, read exactly.

Nothing in the files is executed: safetensors, `weights_only=True` and `allow_pickle=False`.
"""

from vit.pretrained.source import ImportedModel, SourceError, read_source

__all__ = ["ImportedModel", "SourceError", "read_source"]
