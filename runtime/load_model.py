"""Check a model file, open it on a device, and describe both."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .cpu import available_cores
from .devices import DEVICES, Device, DeviceOptions
from .model_file.artifact import Artifact, ArtifactError, Metadata, choose_model_file, read_artifact
from .placement import Placement, check_placement, read_multiply_adds, read_placement
from .session import devices_for, open_first_device, open_session

if TYPE_CHECKING:
    from .onnx_runtime import InferenceSession

_log = logging.getLogger(__name__.rpartition(".")[0])  # the package


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Metadata):
    """Metadata of a model file, and where it runs."""

    path: str | None  # absolute; None for a model given as bytes
    sha256: str  # of the .onnx file
    device: str  # the one that "auto" chose
    threads: int
    placement: Placement | None = field(repr=False)  # None where this ONNX Runtime cannot say
    field_statistics: str | None = field(repr=False)  # JSON document, which a monitor parses; None without


def load_model(
    model: os.PathLike[str] | str | bytes,
    *,
    device: Device,
    threads: int | None,
    sha256: str | None,
    options: DeviceOptions,
    key: os.PathLike[str] | str | None = None,
) -> tuple[ModelInfo, InferenceSession]:
    """Check a model file and open it; arguments and errors are those of `Classifier`."""

    def open_on(choice: Device) -> tuple[ModelInfo, InferenceSession]:
        variants = DEVICES[choice].variants
        source = model if isinstance(model, bytes) else choose_model_file(model, variants)
        artifact = read_artifact(source, sha256=sha256 if key is None else _read_signed(source, key, sha256))
        if device == "auto" and artifact.metadata.variant == "int8":
            choice = "cpu"  # CUDA has no integer kernels
        multiply_adds = read_multiply_adds(artifact.metadata.measured, artifact.name)
        session = open_session(
            artifact.source,
            device=choice,
            threads=threads,
            target=artifact.metadata.target,
            weights=artifact.weights,
            options=options,
        )
        artifact.expect_unchanged()
        one_image = takes_one_image(artifact.metadata, choice)
        _check_graph(session, artifact, fixed_batch=one_image)
        if artifact.metadata.target == "npu" and "npu" not in DEVICES[choice].variants:
            _warn_once(_describe_npu_file(artifact, choice))
        placement = read_placement(session, multiply_adds)
        if device not in ("auto", "cpu") and not options.partial:
            check_placement(placement, device, artifact.name)
        info = ModelInfo(
            **vars(artifact.metadata),
            path=None if isinstance(source, bytes) else os.path.abspath(source),  # noqa: PTH100 (follows no links)
            sha256=artifact.sha256,  # after every check that has a reason of its own
            device=choice,
            threads=threads or available_cores(),
            placement=placement,
            field_statistics=artifact.field_statistics,
        )
        return info, session

    return open_first_device(devices_for(device), open_on)


def takes_one_image(metadata: Metadata, device: str) -> bool:
    """Return whether a run takes one image alone: the device needs static shapes, or the file has them."""
    return DEVICES[device].fixed_batch or metadata.target == "npu"


def _describe_npu_file(artifact: Artifact, device: str) -> str:
    """Return the sentence about a file for an NPU on another device: it is slow there, and its drift."""
    drift = artifact.metadata.measured.get("drift")
    sqnr = drift.get("sqnr") if isinstance(drift, dict) else None
    found = f"{sqnr:.1f} dB" if isinstance(sqnr, (int, float)) else "not measured"
    return (
        f"{artifact.name} is for an NPU, and {device} computes it more slowly than float32; its distance "
        f"from float32 on the CPU of the export: {found}"
    )


@cache  # a stream opens the model again
def _warn_once(message: str) -> None:
    _log.warning(message)


def _read_signed(source: Path | bytes, key: os.PathLike[str] | str, sha256: str | None) -> str:
    """Return the digest that the owner of a key has signed; `sha256`, where it is given, must be the same."""
    from .update.signature import read_signature

    if isinstance(source, bytes):
        raise ValueError("a key needs the path of a model file, whose signature is beside it; found bytes")
    signed = read_signature(source, key).sha256
    if sha256 is not None and signed != sha256.strip().lower():
        raise ArtifactError(f"{source}: the signed SHA-256 is not the expected one, {sha256}")
    return signed


def _check_graph(session: InferenceSession, artifact: Artifact, *, fixed_batch: bool) -> None:
    """Check that inputs and outputs of the graph are those of its metadata, for any number of images.

    Args:
        session: of the model.
        artifact: the model file.
        fixed_batch: the session was opened for one image at a time.

    Raises:
        ArtifactError: when they are not.
    """
    size, outputs = artifact.metadata.preprocess.size, artifact.metadata.outputs
    rows = [(name, "tensor(float)", [features]) for name, features in outputs.items()]
    for what, expected, nodes in (
        ("input", [("pixels", "tensor(uint8)", [*size, 3])], session.get_inputs()),
        ("output", rows, session.get_outputs()),
    ):
        try:
            found = [(node.name, node.type, node.shape[1:]) for node in nodes]
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{artifact.name}: a name in its graph is no text; copy it again") from error
        if found != expected:
            both = f"the {what} of its graph is {found}, its metadata says {expected}"
            raise ArtifactError(f"{artifact.name}: {both}; export it again")
        for node in nodes:
            if isinstance(node.shape[0], int) and not (fixed_batch and node.shape[0] == 1):
                fixed = f"the batch of its {what} {node.name} is fixed to {node.shape[0]}"
                raise ArtifactError(f"{artifact.name}: {fixed}, expected one that is free; export it again")
