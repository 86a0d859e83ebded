"""python -m vit import: weights of another project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.command.file_kinds import NO_WEIGHTS, Kind, detect_file_kind, refuse_kinds
from runtime.command.line import is_installed
from runtime.command.locking import only_writer
from runtime.command.progress import Step, print_for_people
from runtime.errors import MissingPackageError, install_line
from runtime.text import format_count
from runtime.writing import OutputError, check_folder
from vit.commands.import_classes import ADDS_TO, EXAMPLES, ClassesError, check_classes, make_classes
from vit.commands.import_options import ImportOptions

if TYPE_CHECKING:
    from vit.pretrained.load import ImportedModel

_NO_LIST: tuple[Kind, ...] = (
    *("image", "onnx", "safetensors", "zip", "archive", "array", "pickle", "others"),
    *("folder", "device"),
)


def run_import(options: ImportOptions) -> None:
    """Import the weights, and print what was found, what was assumed and the path of the checkpoint."""
    labels = _check_options(options)
    words, examples = check_classes(options)
    from vit.pretrained.hub import find_snapshot
    from vit.pretrained.weight_files import fetch_weights

    local = fetch_weights(options.source, plain=True, tokenizer=options.classes is not None)
    options = replace(options, source=local)
    _check_source(options)
    source = find_snapshot(local) or local.name
    with only_writer(options.out):
        from vit.checkpoint import save_checkpoint

        with Step("vit", f"importing {source}"):
            found, recipe = _read_source(options)
        recipe["source"] = source
        if options.labels and labels:
            from vit.pretrained.load import replace_labels

            found = replace_labels(found, options.labels, labels)
        if options.classes or options.examples:
            found, facts = make_classes(options, words, examples, found)
            facts["trained_on"] = [*recipe.get("trained_on", ()), *facts["trained_on"]]
            recipe |= facts
        recipe |= {"assumed": list(found.assumed), "notes": list(found.notes)}
        path = save_checkpoint(
            options.out,
            model=found.model,
            preprocess=found.preprocess,
            labels=found.labels,
            recipe=recipe,
            thresholds=found.thresholds,
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

    if _is_checkpoint(find_weights(options.source)):
        from vit.checkpoint import load_checkpoint

        run = load_checkpoint(options.source)
        kept = {"imported": run.recipe.get("imported", "vit-edge"), "from": run.digest, "from_name": run.name}
        kept["trained_on"] = run.recipe.get("trained_on", [])  # the backbone's images are still such
        return ImportedModel(run.model, run.preprocess, run.labels, "vit-edge", ()), kept
    found = import_model(
        options.source, heads=options.heads, activation=options.activation, weights=options.weights
    )
    return found, {"imported": found.format}


def _check_options(options: ImportOptions) -> tuple[str, ...] | None:
    """Find what does not fit before weights are downloaded; return the labels of --labels."""
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


def _check_source(options: ImportOptions) -> None:
    """Find what does not fit before weights are read."""
    from vit.pretrained.weight_files import INDEX, find_weights, refuse_other_files

    if options.classes is not None:
        from vit.pretrained.text_tower import check_text_tower

        check_text_tower(options.source)
    file = find_weights(options.source)
    refuse_other_files(file)
    hint = "give a .safetensors, .pth or .npz file or its folder"
    if not file.name.endswith(INDEX):
        refuse_kinds(file, NO_WEIGHTS, "weights of a model", hint)
    if _is_checkpoint(file):
        _check_checkpoint(options, file)
    elif options.add_class is not None:
        raise ClassesError(f"{options.source}: --add-class {ADDS_TO}, found weights of another project")


def _is_checkpoint(file: Path) -> bool:
    from vit.document import KEY, read_header

    return detect_file_kind(file)[0] == "safetensors" and KEY in read_header(file)


def _check_checkpoint(options: ImportOptions, file: Path) -> None:
    """Refuse a checkpoint of vit-edge as SOURCE where nothing can be made of it."""
    from vit.document import FILE_NAME, CheckpointError, read_document

    if not options.examples:
        raise CheckpointError(
            f"{file}: expected weights of another project, found a checkpoint of vit-edge; use it as it is, "
            "for example in python -m export or in python -m vit train --from"
        )
    if unread := [name for name in ("heads", "activation", "weights") if getattr(options, name) is not None]:
        raise ClassesError(
            f"{file}: a checkpoint of vit-edge states its {unread[0]}; leave --{unread[0]} out"
        )
    if (options.out / FILE_NAME).resolve() == file.resolve():
        raise CheckpointError(f"{options.out}: it is the source, which is kept; choose another --out")
    origin = read_document(file).recipe.get("head", "training or an import")
    if options.add_class is not None and origin != EXAMPLES:
        hint = f"; import it again with --classes and {options.add_class!r}" if "words" in origin else ""
        raise ClassesError(f"{file}: --add-class {ADDS_TO}, found classes from {origin}{hint}")


def _replaceable(out: Path) -> bool:
    """Return whether a folder has no checkpoint, or one that an import made and another can replace."""
    from vit.document import FILE_NAME, CheckpointError, read_document

    try:
        return not (out / FILE_NAME).exists() or "imported" in read_document(out).recipe
    except CheckpointError:  # of another project: the source itself, say
        return False
