"""The source that a command line names: a checkpoint, weights of another project, an ONNX model, the example.

Each kind has a reader. It says first what can be found out without weights, and refuses what is no such
source; only then it reads the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.command.file_kinds import NO_WEIGHTS, Kind, detect_file_kind, refuse_kinds
from runtime.command.line import is_installed
from runtime.errors import InputError, Interrupted, MissingPackageError, install_line
from vit.pretrained.hub import is_hub_name

if TYPE_CHECKING:
    from export.sources.source import Source
    from vit.config import ViTConfig

EXAMPLE = "digits"  # of vit.training.examples; also the name of its images
_EXAMPLE_RUN = Path("runs/digits")
_NOT_ONNX: tuple[Kind, ...] = (
    "image", "safetensors", "zip", "archive", "array", "pickle", "page", "pointer", "others", "folder",
    "device",
)  # fmt: skip

Announce = Callable[[str], AbstractContextManager[object]]  # shows what is being done while it lasts


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a source that need none of its weights."""

    labels: tuple[str, ...] | None = None  # of the classes; None where only the weights tell
    config: ViTConfig | None = None  # of a checkpoint's model; None where only the graph tells
    notes: tuple[str, ...] = ()  # sentences for people
    several: bool = False  # True if the model gives several labels per image


@dataclass(frozen=True)
class CheckpointReader:
    """Reader of a checkpoint of this project.

    The other readers have the same members: a `name` for a folder in artifacts/, `read_facts`, and
    `read_source` with a function that shows each long step.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        from vit.document import checkpoint_name, find_checkpoint
        from vit.pretrained.hub import name_snapshot

        return name_snapshot(self.path) or checkpoint_name(find_checkpoint(self.path))

    def read_facts(self) -> SourceFacts:
        """Return the labels, the config, and that the training is not finished where it is not."""
        from vit.document import find_checkpoint, read_document

        document = read_document(self.path)
        note = f"{find_checkpoint(self.path)}: {describe_unfinished(document.history, document.recipe)}"
        notes, several = () if document.finished else (note,), document.thresholds is not None
        return SourceFacts(document.labels, document.config, notes, several)

    def read_source(self, step: Announce) -> Source:
        """Load the weights, and let torch write the graph."""
        with step(f"writing the float graph of {self.path}"):
            from export.sources.from_torch import export_checkpoint
            from vit.checkpoint import load_checkpoint

            return export_checkpoint(load_checkpoint(self.path))


@dataclass(frozen=True)
class ExampleReader:
    """Reader of the embedded example, which is trained when it is not yet."""

    folder: Path = _EXAMPLE_RUN
    name = EXAMPLE

    def read_facts(self) -> SourceFacts:
        """Return the labels and the config of the digits model, and that its training resumes."""
        from vit.run_folder import STATE
        from vit.training.examples import find_example

        resumes = not _is_trained(self.folder) and (self.folder / STATE).is_file()
        notes = (f"{self.folder}: the training was interrupted; it resumes",) if resumes else ()
        return SourceFacts(tuple("0123456789"), find_example(EXAMPLE).config, notes)

    def read_source(self, step: Announce) -> Source:
        """Train as far as it is not trained yet, then do as for any checkpoint."""
        return CheckpointReader(complete_example(self.folder)).read_source(step)


@dataclass(frozen=True)
class WeightsReader:
    """Reader of weights of another project."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the file or the folder; on the hub, of the repository."""
        from vit.pretrained.weight_files import name_weights

        return name_weights(self.path)

    def read_facts(self) -> SourceFacts:
        """Return nothing: only the weights tell. Refuse files that are none."""
        from vit.pretrained.weight_files import INDEX, find_weights, refuse_other_files

        file = find_weights(self.path)
        refuse_other_files(file)
        advice = "give a run, or a file of weights"
        if not file.name.endswith(INDEX):
            refuse_kinds(file, NO_WEIGHTS, "a checkpoint or weights of a model", advice)
        return SourceFacts()

    def read_source(self, step: Announce) -> Source:
        """Import the weights, and let torch write the graph."""
        with step(f"importing {self.path} and writing its float graph"):
            from export.sources.from_torch import export_weights

            return export_weights(self.path)


@dataclass(frozen=True)
class OnnxReader:
    """Reader of an ONNX model of another exporter, with its description."""

    model: Path
    preprocess: Path | None

    @property
    def name(self) -> str:
        """Name of the file or the folder."""
        from export.sources.onnx_description import find_onnx, name_onnx

        return name_onnx(find_onnx(self.model))

    def read_facts(self) -> SourceFacts:
        """Return the labels, where the description has them."""
        from export.sources.onnx_description import describe_onnx, find_onnx

        check_onnx_source(find_onnx(self.model))
        if self.preprocess is not None:
            refuse_kinds(self.preprocess, (*_NOT_ONNX, "onnx"), "a description in JSON", "give its file")
        found = describe_onnx(self.model, self.preprocess).description
        return SourceFacts(found.labels, several=found.thresholds is not None)

    def read_source(self, step: Announce) -> Source:
        """Read the graph and bring it into its canonical form."""
        with step(f"reading {self.model}"):
            from export.sources.onnx_file import read_onnx

            return read_onnx(self.model, self.preprocess)


SourceReader = CheckpointReader | ExampleReader | WeightsReader | OnnxReader


def choose_source_reader(checkpoint: Path | None, onnx: Path | None, preprocess: Path | None) -> SourceReader:
    """Return the reader for the source that a command line names; one on the hub is downloaded.

    Args:
        checkpoint: a checkpoint, or weights of another project; None, without `onnx`, for the example.
        onnx: an ONNX model or its folder.
        preprocess: the description of the ONNX model; None for the one beside it.

    Raises:
        MissingPackageError: where the source needs PyTorch and it is not installed.
        InputError: for an ONNX model without --onnx, and for the files of an export.
    """
    if onnx is not None:
        if is_hub_name(onnx):
            from export.sources.onnx_file import fetch_onnx

            onnx = fetch_onnx(onnx)
        return OnnxReader(onnx, preprocess)
    if not is_installed("torch") or not is_installed("safetensors"):
        needs = f"{checkpoint or _EXAMPLE_RUN}: a checkpoint needs PyTorch; {install_line('export')}"
        raise MissingPackageError(f"{needs}; an ONNX model does not: python -m export --onnx MODEL")
    if checkpoint is None:
        return ExampleReader()
    from vit.pretrained.weight_files import fetch_weights, holds_weights

    checkpoint = fetch_weights(checkpoint)
    if holds_weights(checkpoint):
        return WeightsReader(checkpoint)
    inside = [*checkpoint.glob("*.onnx"), *checkpoint.glob("onnx/*.onnx")] if checkpoint.is_dir() else []
    files = [checkpoint] if checkpoint.suffix == ".onnx" else inside
    for file in files:
        if variant := _variant_of(file):
            raise InputError(
                f"{checkpoint}: expected a checkpoint, found {_describe_exported(file, variant)}"
            )
    if files:
        raise InputError(f"{checkpoint}: an ONNX model; write --onnx {checkpoint}")
    return CheckpointReader(checkpoint)


def check_onnx_source(file: Path) -> None:
    """Refuse what is no ONNX model, or one that an export of this project made."""
    if not os.path.lexists(file):
        raise InputError(f"{file}: no such file; give an .onnx file or its folder, or hf:OWNER/NAME")
    kinds = _NOT_ONNX if file.suffix == ".onnx" else (*_NOT_ONNX, "text")
    found = detect_file_kind(file)[0]
    advice = "leave --onnx out" if found == "safetensors" else "give an .onnx file or its folder"
    refuse_kinds(file, (*kinds, "empty"), "an ONNX model", advice)
    if (variant := _variant_of(file)) is not None:
        again = "" if variant == "int8" else ", or quantize the model that it was made from"
        exported = _describe_exported(file, variant)
        raise InputError(f"{file}: expected a float32 model of another project, found {exported}{again}")


def _variant_of(file: Path) -> str | None:
    """Return the variant of a model file that an export of this project made; None for other files."""
    from runtime.model_file.artifact import read_metadata

    try:
        return read_metadata(file).variant
    except InputError:
        return None


def _describe_exported(file: Path, variant: str) -> str:
    return f"the {variant} file of an export; label images with it: python -m runtime {file} IMAGES"


def describe_unfinished(history: Sequence[object], recipe: Mapping[str, Any]) -> str:
    """Return how far a run has come whose checkpoint is not the final one, and what to do."""
    epochs = recipe.get("recipe", {}).get("epochs", "?")
    return (
        f"the training is not finished (epoch {len(history)} of {epochs}); this exports the best epoch "
        "so far; finish it with python -m vit train … --resume"
    )


def complete_example(folder: Path) -> Path:
    """Return the checkpoint of the digits model in `folder`, after training what is left to train."""
    from vit.run_folder import STATE
    from vit.training.examples import train_example

    if _is_trained(folder):
        return folder
    try:
        return train_example(EXAMPLE, folder, resume=(folder / STATE).is_file())
    except Interrupted as error:
        resumes = f"its state is kept in {folder}: the same command resumes it"
        raise Interrupted(f"stopped in training; {resumes}") from error


def _is_trained(folder: Path) -> bool:
    from vit.document import FILE_NAME, read_document

    return (folder / FILE_NAME).is_file() and read_document(folder).finished
