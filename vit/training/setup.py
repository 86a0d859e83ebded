"""From the options of `python -m vit train` to a model, images and a recipe that fit each other."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.images.preprocess import Preprocess, scale_resize_to
from runtime.text import format_count, list_first, suggest
from vit.config import ConfigError, ViTConfig, check_grid, make_config, merge_schedule
from vit.data.datasets import DataError, Images, find_splits, match_labels, open_images
from vit.data.training_images import TrainingData, open_data
from vit.document import CheckpointError, Document, read_document
from vit.training.examples import EXAMPLES
from vit.training.recipe import FINETUNE, PRESETS, PROBE_FIELDS, Recipe, RecipeError

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint
    from vit.model import ViT

STEPS = 10  # per epoch, at least: with one or two a run of the usual length stays at chance
FEW = 1000  # images, below which a pretrained model is advised


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `python -m vit train`; None stands for the default that the help text names."""

    data: str
    model: str | None = None
    source: Path | None = None  # the checkpoint of --from
    preset: str | None = None
    image_size: int | None = None
    patch_size: int | None = None
    teacher: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int | None = None
    merge_tokens: int | None = None
    white_level: int | None = None
    changes: tuple[str, ...] = ()  # NAME=VALUE of --set


@dataclass(frozen=True)
class Start:
    """Arguments for `vit.training.train.train`."""

    recipe: Recipe
    model: ViT
    data: TrainingData
    preprocess: Preprocess
    teacher: ViT | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """Parts of a run that are known before weights are read."""

    recipe: Recipe
    data: TrainingData
    config: ViTConfig  # of the model that will be trained


def check(options: TrainOptions) -> Checked:
    """Find what does not fit, without reading weights and without torch.

    Raises:
        RecipeError, ConfigError, DataError, CheckpointError: saying which word does not fit.
    """
    recipe = chosen_recipe(options)
    if not options.source and (recipe.freeze or recipe.name == FINETUNE.name):
        need = (
            "trains a head on frozen features; give the backbone"
            if recipe.freeze
            else "goes on from trained weights; give them"
        )
        raise RecipeError(
            f"preset {recipe.name} {need} with --from CHECKPOINT (python -m vit import makes one), or train "
            "from random weights with --preset scratch"
        )
    if recipe.freeze and recipe.merge_tokens:
        raise RecipeError(
            f"preset {recipe.name} trains a head on the features of a dense backbone; leave "
            "--merge-tokens out, or train the whole model (--preset finetune)"
        )
    if recipe.freeze and (unused := sorted({*given_fields(options)} - PROBE_FIELDS - {"merge_tokens"})):
        raise RecipeError(
            f"preset {recipe.name} is a logistic regression on frozen features and has no {unused[0]}; leave "
            "it out, or train the whole model (--preset finetune)"
        )
    if recipe.freeze and options.teacher:
        raise RecipeError(
            f"preset {recipe.name} learns from labels alone; leave --teacher out, or train the whole model "
            "(--preset finetune)"
        )
    source = read_document(options.source) if options.source else None
    teacher = read_document(options.teacher) if options.teacher else None
    if source and (options.model or options.patch_size):
        raise ConfigError(
            "--model and --patch-size describe a new model; --from brings its own: give one of them"
        )
    chosen_config(options, recipe, ("",), source)  # before a large folder is searched for images
    data = open_data(options.data, holdout=recipe.holdout, seed=recipe.seed)
    recipe, notes = fit_batch(options, recipe, len(data.train))
    data = replace(data, notes=(*data.notes, *notes))
    config = chosen_config(options, recipe, data.labels, source)
    merge_schedule(config, recipe.merge_tokens)  # does the model have so many patches?
    if teacher and teacher.labels != data.labels:
        raise CheckpointError(
            f"{options.teacher}: the teacher's classes ({list_first(teacher.labels)}) are not those of "
            f"the images ({list_first(data.labels)}); fine-tune it on the same classes first"
        )
    return Checked(recipe, data, config)


def prepare(options: TrainOptions, checked: Checked | None = None) -> Start:
    """Put together what `python -m vit train` was asked for.

    Args:
        options: of the command line.
        checked: what `check` returned for them; None to check them now.

    Raises:
        RecipeError, ConfigError, DataError, CheckpointError: saying which word does not fit.
    """
    checked = checked or check(options)
    from vit.checkpoint import load_checkpoint

    recipe, data = checked.recipe, checked.data
    source = load_checkpoint(options.source) if options.source else None
    model, preprocess = chosen_model(checked, source)
    if options.white_level is not None:
        preprocess = with_white_level(preprocess, options.white_level)
    teacher = load_checkpoint(options.teacher) if options.teacher else None
    notes = {"from": source.digest, "from_name": source.name} if source else {}
    if teacher:
        notes["teacher"] = teacher.digest
    return Start(recipe, model, data, preprocess, teacher.model if teacher else None, notes)


def chosen_recipe(options: TrainOptions) -> Recipe:
    name = options.preset
    if name is None:
        fallback = options.data if options.data in EXAMPLES and not options.model else "scratch"
        name = "finetune" if options.source else fallback
    known = dict(PRESETS) | {key: example.recipe for key, example in EXAMPLES.items()}
    if name not in known:
        raise RecipeError(f"unknown preset {name!r}; known: {', '.join(known)}{suggest(name, known)}")
    return replace(known[name], **given_fields(options))


def given_fields(options: TrainOptions) -> dict[str, Any]:
    """Return the fields of the recipe that the command line sets."""
    changes = dict(parsed_change(text) for text in options.changes)
    for field in ("epochs", "batch", "lr", "seed", "merge_tokens"):
        if getattr(options, field) is not None:
            changes[field] = getattr(options, field)
    return changes


def fit_batch(options: TrainOptions, recipe: Recipe, images: int) -> tuple[Recipe, tuple[str, ...]]:
    """Choose a batch so small that an epoch has `STEPS` steps, and say so; one that was given stays.

    Args:
        options: of the command line, which may set the batch.
        recipe: an example's is what its figures were measured with, and stays.
        images: number of images to train on.

    Returns:
        The recipe, and a sentence where the batch is or should be another one.
    """
    fitting = 1 << max(images // STEPS, 2).bit_length() - 1  # a power of two
    steps = max(images // recipe.batch, 1)
    if recipe.freeze or steps >= STEPS or recipe.batch <= fitting or recipe.name in EXAMPLES:
        return recipe, ()
    few = f"{format_count(images, 'image')} to train on"
    if "batch" in given_fields(options):
        per_epoch = f"{format_count(steps, 'step')} per epoch"
        said = f"{few}: a batch of {recipe.batch} gives {per_epoch}, which learns slowly"
        return recipe, (f"{said}; --batch {fitting} gives {max(images // fitting, 1)}",)
    steps = max(images // fitting, 1)
    said = f"{few}: --batch {fitting}, not {recipe.batch}, for {format_count(steps, 'step')} per epoch"
    if options.source is None and images < FEW:
        said += "; so few images learn more from a pretrained model (--from)"
    return replace(recipe, batch=fitting), (said,)


def parsed_change(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` as the type of the recipe's field."""
    name, equals, value = text.partition("=")
    # Not the name: an example's brings its model along.
    types = {field.name: str(field.type) for field in fields(Recipe) if field.name != "name"}
    if name not in types:
        nearest = suggest(name, types)
        raise RecipeError(f"--set {text}: expected NAME=VALUE with a NAME among {', '.join(types)}{nearest}")
    if not equals:
        raise RecipeError(f"--set {text}: expected NAME=VALUE, found a name alone; write {text}=VALUE")
    try:
        return name, PARSERS[types[name]](value)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"--set {name}: expected {DESCRIBED[types[name]]}, found {value!r}") from error


PARSERS: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": {"true": True, "false": False}.__getitem__,
}
DESCRIBED = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false"}


def chosen_config(
    options: TrainOptions, recipe: Recipe, labels: tuple[str, ...], source: Document | None
) -> ViTConfig:
    """Return the shape of the model to train.

    Args:
        options: of the command line.
        recipe: an example's brings its own shape.
        labels: of the images.
        source: the document of the checkpoint to start from.

    Raises:
        ConfigError: for sizes that no model can have.
    """
    changes: dict[str, Any] = {"classes": len(labels)}
    if options.image_size:
        changes["image_size"] = (options.image_size, options.image_size)
    if source:
        if source.labels != labels:  # a new head, without the layer that some pre-trained ones have
            changes["representation"] = None
        config = replace(source.config, **changes)
        check_grid(source.config, config)
        return config
    if options.patch_size:
        changes["patch_size"] = options.patch_size
    if recipe.name in EXAMPLES and not options.model:
        return replace(EXAMPLES[recipe.name].config, **changes)
    return make_config(options.model or "tiny", **changes)


def chosen_model(checked: Checked, source: Checkpoint | None) -> tuple[ViT, Preprocess]:
    """Return the model to train, new or made from a checkpoint, and its preprocessing."""
    from vit.adapt import adapt, resize
    from vit.model import new_model

    config, labels = checked.config, checked.data.labels
    if source is None:
        return new_model(config, checked.recipe.seed), preprocess_for(config, checked.recipe)
    if source.labels == labels:  # the same classes: the head goes on learning
        model = resize(source.model, config.image_size)
    else:
        model = adapt(source.model, classes=len(labels), image_size=config.image_size)
    return model, resized(source.preprocess, config.image_size)


def preprocess_for(config: ViTConfig, recipe: Recipe) -> Preprocess:
    """Photos keep their shape and lose their edges; the examples' images are square already."""
    if recipe.name in EXAMPLES:
        return replace(EXAMPLES[recipe.name].preprocess, size=config.image_size)
    return Preprocess(size=config.image_size, resize="crop", interpolation="bicubic")


def with_white_level(preprocess: Preprocess, white_level: int) -> Preprocess:
    """Return the same preprocessing for 16-bit gray images with another white.

    Raises:
        RecipeError: for a level that no 16 bits have.
    """
    try:
        return replace(preprocess, white_level=white_level)
    except ValueError as error:
        raise RecipeError(f"--white-level: {error}") from error


def resized(preprocess: Preprocess, size: tuple[int, int]) -> Preprocess:
    """The same preprocessing for another size; the shorter edge before a crop grows in proportion."""
    scale = max(size) / max(preprocess.size)
    return replace(preprocess, size=size, resize_to=scale_resize_to(preprocess.resize_to, scale))


def images_to_judge(source: str, labels: tuple[str, ...]) -> Images:
    """The test split of `source`, else its val split, else all of it; with the model's own class indices.

    Raises:
        DataError: for images whose classes are not known, or not among those of the model.
    """
    if not labels:
        raise DataError("the model has no classes, so no answer can be judged; leave --data out")
    split = next((name for name in ("test", "val") if name in find_splits(source)), "all")
    images = match_labels(open_images(source, split), labels)  # type: ignore[arg-type]
    if images.targets is None:
        raise DataError(
            f"{source}: expected images in folders named as the model's {len(labels)} classes "
            f"({list_first(labels)}), found images without classes"
        )
    return images
