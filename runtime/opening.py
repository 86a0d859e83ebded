"""From a path and a wish for a device to a model that runs, and what there is to know of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cpu import available_cores
from .model_file.artifact import Artifact, ArtifactError, Metadata, Variant, choose_file, read_artifact
from .session import Device, device_of, devices_for, open_first, open_session

if TYPE_CHECKING:
    from .onnx_runtime import InferenceSession

CPU_DEVICES = {"cpu", "openvino"}


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Metadata):
    """Model and device of a classifier: the metadata of the file, and the fields below."""

    path: str | None  # absolute; None for a model given as bytes
    sha256: str  # of the .onnx file; `digest` says whether the file holds one to find damage by
    device: str  # the one that "auto" took
    threads: int


def open_model(
    model: os.PathLike[str] | str | bytes, *, device: Device, threads: int | None, sha256: str | None
) -> tuple[ModelInfo, InferenceSession]:
    """Check a model file and open it. Arguments and errors are those of `Classifier`."""

    def open_on(choice: Device) -> tuple[ModelInfo, InferenceSession]:
        source = model if isinstance(model, bytes) else choose_file(model, _preference(choice))
        artifact = read_artifact(source, sha256=sha256)
        if device == "auto" and artifact.metadata.variant == "int8":
            choice = "cpu"  # which is what it was made for; CUDA has no integer kernels
        session = open_session(
            artifact.source,
            device=choice,
            threads=threads,
            target=artifact.metadata.target,
            weights=artifact.weights,
        )
        artifact.expect_unchanged()
        _check_signature(session, artifact)
        info = ModelInfo(
            **vars(artifact.metadata),
            path=None if isinstance(source, bytes) else os.path.abspath(source),  # noqa: PTH100 (follows no links)
            sha256=artifact.sha256,  # after every check that has a reason of its own
            device=device_of(session),
            threads=threads or available_cores(),
        )
        return info, session

    return open_first(devices_for(device), open_on)


def _preference(device: Device) -> tuple[Variant, ...]:
    return ("int8", "float32") if device in CPU_DEVICES else ("float16", "float32", "int8")


def _check_signature(session: InferenceSession, artifact: Artifact) -> None:
    """Check that inputs and outputs of the graph are those of its metadata, for any number of images.

    Raises:
        ArtifactError: when it is not.
    """
    size, outputs = artifact.metadata.preprocess.size, artifact.metadata.outputs
    for what, expected, nodes in (
        ("input", [("pixels", "tensor(uint8)", [*size, 3])], session.get_inputs()),
        (
            "output",
            [(name, "tensor(float)", [features]) for name, features in outputs.items()],
            session.get_outputs(),
        ),
    ):
        try:
            found = [(node.name, node.type, node.shape[1:]) for node in nodes]
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{artifact.name}: a name in its graph is no text; copy it again") from error
        if found != expected:
            lie = f"the {what} of its graph is {found}, its metadata says {expected}"
            raise ArtifactError(f"{artifact.name}: {lie}; export it again")
        for node in nodes:
            if isinstance(node.shape[0], int):
                fixed = f"the batch of its {what} {node.name} is fixed to {node.shape[0]}"
                raise ArtifactError(f"{artifact.name}: {fixed}, expected one that is free; export it again")
