"""The embedded example: scikit-learn's digits, trained when there is no finished checkpoint yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from export.command.checks import Known
from runtime.command.kinds import NO_WEIGHTS, Kind, kind_of, refuse_kinds
from runtime.command.line import installed
from runtime.command.progress import Cadence, Step, tell
from runtime.errors import InputError, Interrupted, MissingPackageError, install_line

if TYPE_CHECKING:
    from export.sources.source import Source

# --- The embedded example: scikit-learn's digits, trained when there is no finished checkpoint yet ---


EXAMPLE = "digits"
CHECKPOINT = Path("runs/digits")
ARTIFACTS = Path("artifacts/digits")
IMAGES = "digits"


def example_checkpoint(folder: Path = CHECKPOINT, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the checkpoint of the digits model, after training it as far as it is not trained yet.

    Args:
        folder: where the run is kept.
        say: called with a line for people when an interrupted training goes on.
    """
    from vit.document import FILE_NAME, read_document
    from vit.run_folder import STATE
    from vit.training.examples import train_example

    has_checkpoint = (folder / FILE_NAME).is_file()
    if has_checkpoint and read_document(folder).finished:
        return folder
    resume = (folder / STATE).is_file()
    if resume:
        say(f"{folder}: the training was interrupted; it goes on")
    try:
        return train_example(EXAMPLE, folder, resume=resume)
    except Interrupted as error:
        raise Interrupted(
            f"stopped in training; its state is kept in {folder}: the same command goes on"
        ) from error


# --- Sources of a model: checkpoints, weights of other projects, ONNX models and the example ---


FIRST_LINE = 3.0  # seconds until a log says what the export is doing


class Door(Protocol):
    """One kind of source."""

    @property
    def out(self) -> Path:
        """Where the files go when the command line does not say."""

    def known(self) -> Known:
        """Return what is known without weights; refuse what is no such source."""

    def open(self) -> Source:
        """Read the weights and make the float graph."""


@dataclass(frozen=True)
class CheckpointDoor:
    """A checkpoint of this project."""

    path: Path

    @property
    def out(self) -> Path:
        """artifacts/NAME of the run's folder."""
        from vit.document import checkpoint_name, find_checkpoint

        return Path("artifacts") / checkpoint_name(find_checkpoint(self.path))

    def known(self) -> Known:
        """Return the labels and the config; say it when the training is not finished."""
        from vit.document import find_checkpoint, read_document

        document = read_document(self.path)
        if not document.finished:
            note(f"{find_checkpoint(self.path)}: {unfinished(document.history, document.recipe)}")
        return Known(document.labels, document.config)

    def open(self) -> Source:
        """Load the weights, and let torch write the graph."""
        with step(f"writing the float graph of {self.path}"):
            from export.sources.from_torch import export_checkpoint
            from vit.checkpoint import load_checkpoint

            return export_checkpoint(load_checkpoint(self.path))


@dataclass(frozen=True)
class ExampleDoor:
    """The embedded example, which is trained when it is not yet."""

    out = ARTIFACTS

    def known(self) -> Known:
        """Return the labels and the config of the digits model."""
        from vit.training.examples import find_example

        return Known(tuple("0123456789"), find_example(EXAMPLE).config)

    def open(self) -> Source:
        """Train as far as it is not trained yet, then do as for any checkpoint."""
        return CheckpointDoor(example_checkpoint(CHECKPOINT, say=note)).open()


@dataclass(frozen=True)
class WeightsDoor:
    """Weights of another project."""

    path: Path

    @property
    def out(self) -> Path:
        """artifacts/NAME of the file or the folder."""
        return Path("artifacts") / (self.path.resolve().name if self.path.is_dir() else self.path.stem)

    def known(self) -> Known:
        """Return nothing: only the weights tell. Refuse files that are none."""
        from vit.pretrained.weight_files import find_weights, refuse_other_files

        file = find_weights(self.path)
        refuse_other_files(file)
        refuse_kinds(
            file, NO_WEIGHTS, "a checkpoint or weights of a model", "give a run, or a file of weights"
        )
        return Known()

    def open(self) -> Source:
        """Import the weights, and let torch write the graph."""
        with step(f"importing {self.path} and writing its float graph"):
            from export.sources.from_torch import export_weights

            return export_weights(self.path)


@dataclass(frozen=True)
class OnnxDoor:
    """An ONNX model of another exporter, with its description."""

    model: Path
    preprocess: Path | None

    @property
    def out(self) -> Path:
        """artifacts/NAME of the file or the folder."""
        from export.sources.onnx_description import find_onnx, name_onnx

        return Path("artifacts") / name_onnx(find_onnx(self.model))

    def known(self) -> Known:
        """Return the labels, where the description has them."""
        from export.sources.onnx_description import describe_onnx, find_onnx

        check_onnx(find_onnx(self.model))
        if self.preprocess is not None:
            refuse_kinds(self.preprocess, (*NOT_ONNX, "onnx"), "a description in JSON", "give its file")
        return Known(describe_onnx(self.model, self.preprocess).description.labels)

    def open(self) -> Source:
        """Read the graph and bring it into its canonical form."""
        with step(f"reading {self.model}"):
            from export.sources.onnx_file import read_onnx

            return read_onnx(self.model, self.preprocess)


NOT_ONNX: tuple[Kind, ...] = (
    *("image", "safetensors", "zip", "archive", "array", "pickle", "page", "pointer", "others", "folder"),
    "device",
)


def check_onnx(file: Path) -> None:
    """Refuse what is no ONNX model, or one that an export of this project made.

    Raises:
        InputError: saying what was found and what to do.
    """
    if not os.path.lexists(file):
        raise InputError(f"{file}: no such file; give an .onnx file or its folder")
    kinds = NOT_ONNX if file.suffix == ".onnx" else (*NOT_ONNX, "text")
    advice = "leave --onnx out" if kind_of(file)[0] == "safetensors" else "give an .onnx file or its folder"
    refuse_kinds(file, (*kinds, "empty"), "an ONNX model", advice)
    if (variant := _variant_of(file)) is not None:
        again = "" if variant == "int8" else ", or quantize the model that it was made from"
        found = _of_an_export(file, variant)
        raise InputError(f"{file}: expected a float32 model of another project, found {found}{again}")


def _variant_of(file: Path) -> str | None:
    """Return the variant of a model file that an export of this project made; None for other files."""
    from runtime.model_file.artifact import read_metadata

    try:
        return read_metadata(file).variant
    except InputError:
        return None


def _of_an_export(file: Path, variant: str) -> str:
    return f"the {variant} file of an export; label images with it: python -m runtime {file} IMAGES"


def door_of(checkpoint: Path | None, onnx: Path | None, preprocess: Path | None) -> Door:
    """Return the kind of source that a command line names.

    Raises:
        MissingPackageError: where the source needs PyTorch and it is not installed.
        InputError: for an ONNX model without --onnx, and for the files of an export.
    """
    if onnx is not None:
        return OnnxDoor(onnx, preprocess)
    if not installed("torch") or not installed("safetensors"):
        raise MissingPackageError(
            f"{checkpoint or CHECKPOINT}: a checkpoint needs PyTorch; {install_line('export')}; an ONNX "
            "model does not: python -m export --onnx MODEL"
        )
    if checkpoint is None:
        return ExampleDoor()
    from vit.pretrained.weight_files import holds_weights

    if holds_weights(checkpoint):
        return WeightsDoor(checkpoint)
    inside = [*checkpoint.glob("*.onnx"), *checkpoint.glob("onnx/*.onnx")] if checkpoint.is_dir() else []
    files = [checkpoint] if checkpoint.suffix == ".onnx" else inside
    made = [(file, variant) for file in files if (variant := _variant_of(file)) is not None]
    if made:
        raise InputError(f"{checkpoint}: expected a checkpoint, found {_of_an_export(*made[0])}")
    if files:
        raise InputError(f"{checkpoint}: an ONNX model; write --onnx {checkpoint}")
    return CheckpointDoor(checkpoint)


@cache
def cadence() -> Cadence:
    """Return when the steps of an export are shown: one clock for all, so that none is silent for long."""
    return Cadence(first=FIRST_LINE)


def step(what: str, total: int = 0, unit: str = "image") -> Step:
    """Return one long step of the export, to be shown while it lasts."""
    return Step("export", what, total, unit, cadence=cadence())


def note(line: str) -> None:
    """Print a line for people on standard error."""
    tell(f"export: {line}")


def unfinished(history: Sequence[object], recipe: Mapping[str, Any]) -> str:
    """Say how far a run has come whose checkpoint is not the final one."""
    epochs = recipe.get("recipe", {}).get("epochs", "?")
    return (
        f"the training is not finished (epoch {len(history)} of {epochs}); this exports the best epoch "
        "so far; finish it with python -m vit train … --resume"
    )
