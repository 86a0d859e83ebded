"""From the torch model to its canonical float32 ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch

from export.canonical import INPUT, OPSET, OUTPUT, FloatModel
from export.passes import canonicalize
from vit.model import ViT


def export_float(model: ViT) -> FloatModel:
    """Export with a dynamic batch through torch.onnx (dynamo), then run every rewrite.

    The graph takes `pixels`, uint8 [N, H, W, 3], and gives `logits`, float32 [N, classes].
    """
    exported = export_raw(model)
    return FloatModel(exported, canonicalize(exported))


def export_raw(model: ViT) -> ir.Model:
    """Return the model that torch.onnx.export writes, before any rewrite."""
    pixels = torch.zeros(2, *model.config.image_size, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            (pixels,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no model")
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations and of a torchvision that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
