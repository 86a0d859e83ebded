"""Loading a foreign float ViT from ONNX, in the form that quantizes well."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.graph import Array, GraphError, constant, rename, sizes
from calibration.serialize import session_of
from calibration.sites import linear_of
from export.canonical import OUTPUT, FloatModel
from export.from_onnx.canonicalize import canonicalize_foreign
from export.from_onnx.file import parse, read_bytes, standard
from export.from_onnx.scores import take_logits
from export.from_onnx.spec import ForeignError, Spec
from runtime.images.preprocess import Preprocess
from runtime.onnx_runtime import onnxruntime as ort
from runtime.text import counted
from vit.pretrained.documents import ONE_CLASS

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
PROBES = 4  # images of noise, on which a softmax that is taken off is compared with the runtime's


@dataclass(frozen=True)
class ForeignModel:
    """A foreign float model in canonical form, beside the original that it must equal."""

    exported: FloatModel
    preprocess: Preprocess
    labels: tuple[str, ...]
    path: Path
    digest: str  # SHA-256 of the .onnx file
    float_layers: tuple[str, ...]  # products of a constant weight that no pass made quantizable
    original: ir.Model = field(repr=False)
    spec: Spec = field(repr=False)

    @cached_property
    def _session(self) -> ort.InferenceSession:
        return session_of(self.original)

    def reference(self, pixels: Array) -> Array:
        """Return the logits of the original file, `float32 [N, classes]`, for `uint8 [N, H, W, 3]`."""
        return answers(self._session, pixels, self.spec, self.path)


def answers(session: ort.InferenceSession, pixels: Array, spec: Spec, path: Path) -> Array:
    """Return the output `logits` of a foreign model for `uint8 [N, H, W, 3]`.

    Raises:
        ForeignError: when ONNX Runtime cannot run it.
    """
    (taken,) = session.get_inputs()
    images = ((pixels.astype(np.float64) / 255 - spec.mean) / spec.std).astype(np.float32)
    if taken.shape[1] == 3 or taken.shape[3] != 3:
        images = images.transpose(0, 3, 1, 2)
    size = taken.shape[0] if isinstance(taken.shape[0], int) else len(images)
    found = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        feed = {taken.name: np.ascontiguousarray(padded)}
        try:
            found.append(session.run([OUTPUT], feed)[0][: len(part)])
        except Exception as error:  # pybind's own exception classes, of which there is no list
            raise ForeignError(
                f"{path}: ONNX Runtime cannot run it ({' '.join(str(error).split())})"
            ) from error
    return np.concatenate(found)


def load(path: Path, spec: Spec) -> ForeignModel:
    """Read a float ONNX classifier and bring it into the form that quantizes well.

    Args:
        path: the .onnx file; its external data, if any, must lie in the same folder.
        spec: what the model wants to see.

    Raises:
        ForeignError: for a file that is no float image classifier with one input.
    """
    data = read_bytes(path)
    original = standard(parse(data, path), path)
    _expect_classifier(original, path)
    if spec.labels != ():  # an embedding may be of any form
        pixels = np.random.default_rng(0).integers(0, 256, (PROBES, *spec.preprocess.size, 3), np.uint8)
        take_logits(original, path, lambda model: answers(session_of(model), pixels, spec, path))
    canonical = original.clone()
    try:
        passes = canonicalize_foreign(canonical, size=spec.preprocess.size, mean=spec.mean, std=spec.std)
    except GraphError as error:
        raise ForeignError(f"{path}: {error}") from error
    labels = _named(canonical, spec, path)
    digest = hashlib.sha256(data).hexdigest()
    return ForeignModel(
        FloatModel(canonical, passes),
        spec.preprocess,
        labels,
        path,
        digest,
        float_layers(canonical),
        original,
        spec,
    )


def float_layers(model: ir.Model) -> tuple[str, ...]:
    """Return the layers with constant weights that are no plain Gemm and so stay float, as Conv does."""
    names = []
    for node in model.graph:
        heavy = node.op_type in ("Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention")
        parts = node.inputs[:2] if node.op_type in ("MatMul", "Gemm") else ()
        weighs = any(constant(value) is not None for value in parts)
        if heavy or (weighs and linear_of(node) is None):
            names.append(f"{node.name} ({node.op_type})")
    return tuple(names)


def _expect_classifier(model: ir.Model, path: Path) -> None:
    """Check for one float32 input of images and one output of logits, and name that output "logits"."""
    inputs = model.graph.inputs
    if len(inputs) != 1 or inputs[0].dtype != ir.DataType.FLOAT:
        listed = ", ".join(f"{value.name} ({value.dtype}, {value.shape})" for value in inputs)
        raise ForeignError(f"{path}: expected one input of float32 images, found {listed or 'none'}")
    outputs = list(model.graph.outputs)
    named = [value for value in outputs if value.name == OUTPUT]
    flat = [
        value
        for value in outputs
        if (value.dtype in (None, *FLOATS)) and ((shape := sizes(value)) is None or len(shape) == 2)
    ]
    chosen = named or flat
    if len(chosen) != 1:
        listed = ", ".join(f"{value.name} {value.shape}" for value in outputs)
        raise ForeignError(
            f"{path}: expected one output of numbers [N, classes] or one called {OUTPUT!r}, found {listed}"
        )
    model.graph.outputs[:] = chosen
    rename(model.graph, chosen[0], OUTPUT)


def _named(model: ir.Model, spec: Spec, path: Path) -> tuple[str, ...]:
    shape = sizes(model.graph.outputs[0])
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise ForeignError(f"{path}: expected logits [N, classes], found an output of shape {shape}")
    if spec.labels == ():  # the description says that these are no classes but an embedding
        return ()
    if shape[1] == 1:
        raise ForeignError(f"{path}: {ONE_CLASS}")
    if spec.labels is None:
        return tuple(map(str, range(shape[1])))
    if len(spec.labels) != shape[1]:
        raise ForeignError(
            f"{path}: the model has {counted(shape[1], 'class', 'classes')}, the description "
            f"{counted(len(spec.labels), 'label')}"
        )
    return spec.labels
