"""python -m vit import --classes, --examples and --add-class: classes without training."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.command.progress import Step
from runtime.errors import InputError
from runtime.text import format_count, list_first

if TYPE_CHECKING:
    from torch import Tensor

    from vit.commands.import_options import ImportOptions
    from vit.data.datasets import Images
    from vit.model import ViT
    from vit.pretrained.load import ImportedModel

TEMPLATE = "a photo of a {}"
EXAMPLES = "examples"  # the origin of a head that classes can be added to
ADDS_TO = "adds to a checkpoint whose classes came from --examples alone"
LARGEST_DIFFERENCE = 1e-3  # of two embeddings of length 1, from this model and from transformers


class ClassesError(InputError):
    """Options of classes that do not fit each other or their files."""


def check_classes(options: ImportOptions) -> tuple[tuple[str, ...], Images | None]:
    """Return the words and the examples that were asked for, if any, before weights are read.

    Raises:
        ClassesError: for options that do not go together, and for classes of less than two names.
        DataError: for a folder of examples without images, or without classes.
    """
    _check_together(options)
    words = () if options.classes is None else read_words(options.classes)
    images = None if options.examples is None else _open_examples(options.examples, options.add_class, words)
    return words, images


def _check_together(options: ImportOptions) -> None:
    words, examples, added = options.classes, options.examples, options.add_class
    wrong = {
        "--template writes the words of --classes; give both": options.template and not words,
        "--add-class needs --examples FOLDER, with images of the class": added and not examples,
        "--add-class expects the name of a class, found none": added == "",
        "--add-class adds one class from images; leave --classes out": added and words,
        "--classes and --examples bring their labels; leave --labels out": options.labels
        and (words or examples),
    }
    for message, found in wrong.items():
        if found:
            raise ClassesError(message)
    for template in options.template:
        if template.count("{}") != 1:
            raise ClassesError(
                f"--template expects a text with one {{}}, the place of the class; found {template!r}"
            )


def read_words(text: str) -> tuple[str, ...]:
    """Return the classes of --classes: the lines of a file of that name, or else split by commas.

    Raises:
        ClassesError: for less than two classes, or one that is named twice.
    """
    from vit.pretrained.weight_files import read_labels

    is_file = os.path.isfile(text)  # noqa: PTH113 (a long list is no name, and an error to pathlib)
    words = read_labels(Path(text)) if is_file else tuple(filter(None, map(str.strip, text.split(","))))
    if len(words) < 2:
        where = "" if is_file else "; no file has that name"
        raise ClassesError(
            "--classes expects at least 2 classes, on the lines of a file or with commas between, found "
            f"{list_first(words) or 'none'}{where}"
        )
    if twice := [word for word in dict.fromkeys(words) if words.count(word) > 1]:
        raise ClassesError(f"--classes has {list_first(twice)} more than once; name each class once")
    return words


def _open_examples(folder: Path, added: str | None, words: tuple[str, ...]) -> Images:
    """Find the examples: in a folder per class, or of one class that is added."""
    from vit.data.datasets import DataError, find_splits, open_images

    images = open_images(folder, "train" if "train" in find_splits(folder) else "all")
    labels = images.labels or ()
    if added is not None and labels:
        raise DataError(
            f"{folder}: --add-class expects images of one class, found folders of {list_first(labels)}"
        )
    if added is None and len(labels) < 2:
        raise DataError(f"{folder}: --examples expects a folder of images for each of at least 2 classes")
    if words and set(words) != set(labels):
        differ = sorted(set(words) ^ set(labels))
        raise DataError(
            f"{folder}: expected a folder of examples for each class of --classes and no other, found a "
            f"difference in {list_first(differ)}"
        )
    return images


def make_classes(
    options: ImportOptions, words: tuple[str, ...], images: Images | None, found: ImportedModel
) -> tuple[ImportedModel, dict[str, Any]]:
    """Return the model with the head that was asked for, and the facts on it for the checkpoint's recipe.

    Raises:
        SourceError: for a text tower that cannot be read, or that belongs to another image tower.
        DataError: for an image that cannot be decoded.
        HeadError: where the class cannot be added to the head of the source.
    """
    from vit.class_head import read_head
    from vit.data.training_images import describe_left_out, digest_images
    from vit.pretrained.description import THRESHOLD_ASSUMED

    made, notes, facts, origin = found, list(found.notes), dict[str, Any](trained_on=[]), list[str]()
    if words:
        templates = options.template or (TEMPLATE,)
        made = replace(made, model=_attach_words(found.model, options.source, words, templates), labels=words)
        notes = [note for note in notes if "(visual_projection)" not in note]
        facts["templates"] = list(templates)
        origin.append("words")
    if images is not None:
        if options.add_class is not None:
            made, center = _add_class(options.source, made, images, options.add_class)
        else:
            made, center, fitted = _attach_examples(made, images, words)
            if not fitted:
                notes.append("no class has two examples, so the scale of the scores is a usual one")
        notes += describe_left_out(images)
        facts |= {"trained_on": digest_images(images), "center": center.tolist()}
        origin.append(EXAMPLES)
    facts["head"] = " and ".join(origin)
    _, scale, biases = read_head(made.model)
    shift = "less those of the mean of the examples" if images is not None else f"plus {float(biases[0]):.4g}"
    count = format_count(len(made.labels), "class", "classes")
    notes.append(f"{count} from {facts['head']}: logits are {scale:.4g} times the cosines, {shift}")
    # The new head gives one label per image, whatever the old one gave.
    of_old = (*found.labels_assumed, THRESHOLD_ASSUMED)
    assumed = tuple(each for each in found.assumed if each not in of_old)
    return replace(made, notes=tuple(notes), assumed=assumed, labels_assumed=(), thresholds=None), facts


def _attach_words(model: ViT, folder: Path, words: tuple[str, ...], templates: tuple[str, ...]) -> ViT:
    import numpy as np
    import torch

    from vit.class_head import attach_head
    from vit.pretrained.description import SourceError
    from vit.pretrained.text_tower import run_text_tower

    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (1, *model.config.image_size, 3), np.uint8))
    with torch.no_grad():
        with Step("vit", "computing class vectors", len(words)) as step:
            tower = run_text_tower(folder, words, templates, model.normalize(pixels), step.to)
        made = attach_head(
            model, tower.vectors, scale=tower.scale, bias=tower.bias, projection=tower.projection
        )
        difference = float((made.features(pixels) - tower.image).abs().max())
    if not difference <= LARGEST_DIFFERENCE:  # NaN too
        raise SourceError(
            f"{folder}: expected the image embedding of transformers, found one that differs by "
            f"{difference:.2g} (limit: {LARGEST_DIFFERENCE}); the folder may hold two sets of weights"
        )
    return made


def _attach_examples(
    found: ImportedModel, images: Images, words: tuple[str, ...]
) -> tuple[ImportedModel, Tensor, bool]:
    """Return the model with a head of examples, their center, and whether the scale was fitted."""
    from vit import class_head as head
    from vit.data.datasets import match_image_labels

    labels = words or images.labels or ()
    embeddings, targets = head.embed_images(found.model, found.preprocess, match_image_labels(images, labels))
    means = head.average_examples(embeddings, targets, labels)
    center, vectors = means.mean(0), head.read_head(found.model)[0] if words else None
    vectors = None if vectors is None else vectors - vectors.mean(0)
    scale = head.fit_scale(embeddings - center, targets, vectors)
    rows = head.combine(means - center, vectors)
    model = head.attach_head(found.model, rows, scale=scale or head.DEFAULT_SCALE, center=center)
    return replace(found, model=model, labels=labels), center, scale is not None


def _add_class(
    source: Path, found: ImportedModel, images: Images, label: str
) -> tuple[ImportedModel, Tensor]:
    import numpy as np
    import torch

    from vit.class_head import HeadError, add_class, average_examples, embed_images
    from vit.document import read_document

    if label in found.labels:
        raise HeadError(f"the model has the class {label!r} already; choose another name for --add-class")
    one = replace(images, targets=np.zeros(len(images), np.int64), labels=(label,))
    mean = average_examples(*embed_images(found.model, found.preprocess, one), (label,))[0]
    center = torch.tensor(read_document(source).recipe.get("center", []))
    model = add_class(found.model, mean, center)
    return replace(found, model=model, labels=(*found.labels, label)), center
