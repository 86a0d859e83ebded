"""python -m vit import: weights of another project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.command.file_kinds import NO_WEIGHTS, Kind, detect_file_kind, refuse_kinds
from runtime.command.line import is_installed
from runtime.command.locking import only_writer
from runtime.command.parser import REQUIRED, argument, option
from runtime.command.progress import Step, print_for_people
from runtime.errors import MissingPackageError, install_line
from runtime.text import format_count
from runtime.writing import OutputError, check_folder
from vit.commands.import_classes import (
    ADDS_TO,
    CheckedClasses,
    ClassesError,
    check_checkpoint,
    check_classes,
    make_classes,
)

if TYPE_CHECKING:
    from vit.pretrained.load import ImportedModel

_NO_LIST: tuple[Kind, ...] = (
    *("image", "onnx", "safetensors", "zip", "archive", "array", "pickle", "others"),
    *("folder", "device"),
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Turn weights of another project into a checkpoint; nothing in them is executed."""

    source: Path = argument(
        REQUIRED,
        "folder of Hugging Face or timm, or a .safetensors, .pth, .ckpt, .bin or .npz file",
        metavar="SOURCE",
    )
    out: Path = option(REQUIRED, "folder for the checkpoint")
    labels: Path | None = option(None, "names of the classes, one per line, class 0 first", metavar="FILE")
    classes: str | None = option(
        None,
        "classes in words for a CLIP or SigLIP model: a file with one per line, or a list with commas",
        metavar="WORDS",
    )
    template: tuple[str, ...] = option(
        (),
        "text that a class is written into, in the place of {}; may be repeated (default: a photo of a {})",
        metavar="TEXT",
    )
    examples: Path | None = option(
        None,
        "folder with a folder of a few images for each class; with --add-class, the images of one class",
        metavar="FOLDER",
    )
    add_class: str | None = option(
        None, "add this class to SOURCE, a checkpoint whose classes came from --examples", metavar="LABEL"
    )
    heads: int | None = option(None, "number of attention heads, if the source does not say it")
    # Those of vit.config, whose import costs --help time.
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] | None = option(
        None, "activation of the MLPs, if the source does not say it"
    )
    weights: str | None = option(
        None,
        "weights to read from a file that holds several sets (default: a moving average, if there is one)",
        metavar="NAME",
    )


def run_import(options: ImportOptions) -> None:
    """Import the weights, and print what was found, what was assumed and the path of the checkpoint."""
    labels, classes = _check(options)
    with only_writer(options.out):
        from vit.checkpoint import save_checkpoint

        with Step("vit", f"importing {options.source.name}"):
            found, recipe = _read_source(options)
        if options.labels and labels:
            from vit.pretrained.load import replace_labels

            found = replace_labels(found, options.labels, labels)
        if options.classes or options.examples:
            found, facts = make_classes(options, classes, found)
            facts["trained_on"] = [*recipe.get("trained_on", ()), *facts["trained_on"]]
            recipe |= facts
        recipe |= {"assumed": list(found.assumed), "notes": list(found.notes)}
        path = save_checkpoint(
            options.out, model=found.model, preprocess=found.preprocess, labels=found.labels, recipe=recipe
        )
    config = found.model.config
    count = format_count(config.classes, "class", "classes")
    print_for_people(f"{found.format} weights: width {config.width}, depth {config.depth}, {count}")
    for sentence in found.notes:
        print_for_people(f"note: {sentence}")
    for sentence in found.assumed:
        print_for_people(f"assumed, since the source does not say: {sentence}")
    if not config.classes:
        print_for_people("note: the weights have no head; fine-tune one with python -m vit train --from")
    print(path)


def _read_source(options: ImportOptions) -> tuple[ImportedModel, dict[str, Any]]:
    """Return the model of SOURCE, weights or a checkpoint, and what the recipe says of its origin."""
    from vit.pretrained.load import ImportedModel, import_model
    from vit.pretrained.weight_files import find_weights

    source = {"source": options.source.name}
    if _is_checkpoint(find_weights(options.source)):
        from vit.checkpoint import load_checkpoint

        run = load_checkpoint(options.source)
        kept = {"imported": run.recipe.get("imported", "vit-edge"), "from": run.digest, "from_name": run.name}
        # The images that the backbone was trained on are still such.
        kept |= {"trained_on": run.recipe.get("trained_on", [])}
        return ImportedModel(run.model, run.preprocess, run.labels, "vit-edge", ()), kept | source
    found = import_model(
        options.source, heads=options.heads, activation=options.activation, weights=options.weights
    )
    return found, {"imported": found.format} | source


def _check(options: ImportOptions) -> tuple[tuple[str, ...] | None, CheckedClasses]:
    """Find what does not fit before weights are read, and return the labels of --labels and the classes."""
    if not is_installed("torch"):
        raise MissingPackageError(f"torch is not installed; {install_line('train,cpu')}")
    from vit.pretrained.weight_files import find_weights, read_labels, refuse_other_files

    if options.labels:
        expected = "a text file with the name of a class on each line"
        refuse_kinds(options.labels, _NO_LIST, expected, "write one, class 0 first")
    labels = read_labels(options.labels) if options.labels else None
    classes = check_classes(options)
    file = find_weights(options.source)
    refuse_other_files(file)
    check_folder(options.out)
    if not _replaceable(options.out):
        raise OutputError(f"{options.out}: another model is there, which is kept; choose another --out")
    hint = "give a .safetensors, .pth or .npz file or its folder"
    refuse_kinds(file, NO_WEIGHTS, "weights of a model", hint)
    if _is_checkpoint(file):
        check_checkpoint(options, file)
    elif options.add_class is not None:
        raise ClassesError(f"{options.source}: --add-class {ADDS_TO}, found weights of another project")
    return labels, classes


def _is_checkpoint(file: Path) -> bool:
    from vit.document import KEY, read_header

    return detect_file_kind(file)[0] == "safetensors" and KEY in read_header(file)


def _replaceable(out: Path) -> bool:
    """Return whether a folder has no checkpoint, or one that an import made and another can replace."""
    from vit.document import FILE_NAME, CheckpointError, read_document

    try:
        return not (out / FILE_NAME).exists() or "imported" in read_document(out).recipe
    except CheckpointError:  # of another project: the source itself, say
        return False
