"""python -m vit import: weights of another project."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runtime.command.file_kinds import NO_WEIGHTS, Kind, detect_file_kind, refuse_kinds
from runtime.command.line import is_installed
from runtime.command.locking import only_writer
from runtime.command.parser import REQUIRED, argument, option
from runtime.command.progress import Step, print_for_people
from runtime.errors import MissingPackageError, install_line
from runtime.text import format_count
from runtime.writing import OutputError, check_folder

_NO_LIST: tuple[Kind, ...] = (
    *("image", "onnx", "safetensors", "zip", "archive", "array", "pickle", "others"),
    *("folder", "device"),
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Turn weights of another project into a checkpoint; nothing in them is executed."""

    source: Path = argument(
        REQUIRED,
        "folder of Hugging Face or timm, OWNER/NAME[@REVISION] of the Hugging Face hub, or a .safetensors, "
        ".pth, .ckpt, .bin or .npz file",
        metavar="SOURCE",
    )
    out: Path = option(REQUIRED, "folder for the checkpoint")
    labels: Path | None = option(None, "names of the classes, one per line, class 0 first", metavar="FILE")
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
    labels = _check_options(options)
    from vit.pretrained.hub import find_snapshot
    from vit.pretrained.weight_files import fetch_weights

    options = replace(options, source=fetch_weights(options.source, plain=True))
    _check_source(options.source)
    source = find_snapshot(options.source) or options.source.name
    with only_writer(options.out), Step("vit", f"importing {source}"):
        from vit.checkpoint import save_checkpoint
        from vit.pretrained import import_model
        from vit.pretrained.load import replace_labels

        found = import_model(
            options.source, heads=options.heads, activation=options.activation, weights=options.weights
        )
        if options.labels and labels:
            found = replace_labels(found, options.labels, labels)
        recipe = {"imported": found.format, "source": source, "assumed": list(found.assumed)}
        recipe["notes"] = list(found.notes)
        path = save_checkpoint(
            options.out, model=found.model, preprocess=found.preprocess, labels=found.labels, recipe=recipe
        )
    config = found.model.config
    classes = format_count(config.classes, "class", "classes")
    print_for_people(f"{found.format} weights: width {config.width}, depth {config.depth}, {classes}")
    for sentence in found.notes:
        print_for_people(f"note: {sentence}")
    for sentence in found.assumed:
        print_for_people(f"assumed, since the source does not say: {sentence}")
    if not config.classes:
        print_for_people("note: the weights have no head; fine-tune one with python -m vit train --from")
    print(path)


def _check_options(options: ImportOptions) -> tuple[str, ...] | None:
    """Find what does not fit before weights are downloaded, and return the labels of --labels."""
    if not is_installed("torch"):
        raise MissingPackageError(f"torch is not installed; {install_line('train,cpu')}")
    from vit.pretrained.weight_files import read_labels

    if options.labels:
        expected = "a text file with the name of a class on each line"
        refuse_kinds(options.labels, _NO_LIST, expected, "write one, class 0 first")
    labels = read_labels(options.labels) if options.labels else None
    check_folder(options.out)
    if not _replaceable(options.out):
        raise OutputError(f"{options.out}: another model is there, which is kept; choose another --out")
    return labels


def _check_source(source: Path) -> None:
    """Find what does not fit before weights are read."""
    from vit.pretrained.weight_files import INDEX, find_weights, refuse_other_files

    file = find_weights(source)
    refuse_other_files(file)
    hint = "give a .safetensors, .pth or .npz file or its folder"
    if not file.name.endswith(INDEX):
        refuse_kinds(file, NO_WEIGHTS, "weights of a model", hint)
        _refuse_checkpoint(file)


def _refuse_checkpoint(file: Path) -> None:
    from vit.document import KEY, CheckpointError, read_header

    if detect_file_kind(file)[0] == "safetensors" and KEY in read_header(file):
        raise CheckpointError(
            f"{file}: expected weights of another project, found a checkpoint of vit-edge; use it as it is, "
            "for example in python -m export or in python -m vit train --from"
        )


def _replaceable(out: Path) -> bool:
    """Return whether a folder has no checkpoint, or one that an import made and another can replace."""
    from vit.document import FILE_NAME, CheckpointError, read_document

    try:
        return not (out / FILE_NAME).exists() or "imported" in read_document(out).recipe
    except CheckpointError:  # of another project: the source itself, say
        return False
