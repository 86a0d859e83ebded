"""python -m vit import: weights of another project."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.command.line import installed, positive
from runtime.command.progress import Step, tell
from runtime.errors import MissingPackageError, install_line
from runtime.locking import only_writer
from runtime.text import counted
from runtime.writing import OutputError, check_folder

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")  # vit.config's, without the cost of importing it


def add_import(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=run_import)
    command.description = "Turn weights of another project into a checkpoint; nothing in them is executed."
    add = command.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of Hugging Face or timm, or a .safetensors, .pth, .ckpt, .bin or .npz file",
    )
    add("--out", required=True, type=Path, help="folder for the checkpoint")
    add("--labels", type=Path, metavar="FILE", help="names of the classes, one per line, class 0 first")
    add(
        "--heads", type=positive, metavar="N", help="number of attention heads, if the source does not say it"
    )
    add("--activation", choices=ACTIVATIONS, help="activation of the MLPs, if the source does not say it")
    add(
        "--weights",
        metavar="NAME",
        help="weights to read from a file that holds several sets (default: a moving average, if there is "
        "one)",
    )


def run_import(options: argparse.Namespace) -> None:
    labels = _check(options)
    with only_writer(options.out), Step("vit", f"importing {options.source.name}"):
        from vit.checkpoint import save_checkpoint
        from vit.pretrained import read_source
        from vit.pretrained.load import with_labels

        found = read_source(
            options.source, heads=options.heads, activation=options.activation, weights=options.weights
        )
        if labels:
            found = with_labels(found, options.labels, labels)
        recipe = {"imported": found.format, "source": options.source.name, "assumed": list(found.assumed)}
        recipe["notes"] = list(found.notes)
        path = save_checkpoint(
            options.out, model=found.model, preprocess=found.preprocess, labels=found.labels, recipe=recipe
        )
    config = found.model.config
    tell(f"{found.format} weights: width {config.width}, depth {config.depth}, {classes(config.classes)}")
    for sentence in found.notes:
        tell(f"note: {sentence}")
    for sentence in found.assumed:
        tell(f"assumed, since the source does not say: {sentence}")
    if not config.classes:
        tell("note: the weights have no head; fine-tune one with python -m vit train --from")
    print(path)


def classes(count: int) -> str:
    """Return a number of classes in words."""
    return counted(count, "class", "classes")


def _check(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Find what does not fit before weights are read, and return the labels of --labels."""
    if not installed("torch"):
        raise MissingPackageError(f"torch is not installed; {install_line('train,cpu')}")
    from vit.pretrained.places import find_weights, read_labels, refuse_other_files

    refuse_other_files(find_weights(options.source))
    check_folder(options.out)
    if not _replaceable(options.out):
        raise OutputError(f"{options.out}: another model is there, which is kept; choose another --out")
    return read_labels(options.labels) if options.labels else None


def _replaceable(out: Path) -> bool:
    """Return whether a folder has no checkpoint, or one that an import made and another can replace."""
    from vit.document import FILE_NAME, CheckpointError, read_document

    try:
        return not (out / FILE_NAME).exists() or "imported" in read_document(out).recipe
    except CheckpointError:  # of another project: the source itself, say
        return False
