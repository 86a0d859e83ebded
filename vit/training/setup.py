"""From the options of `python -m vit train` to a model, images and a recipe that fit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.images.preprocess import Preprocess, scale_resize_to
from runtime.text import format_count, list_first, suggest
from vit.config import ConfigError, ViTConfig, check_grid, make_config, merge_schedule
from vit.data.datasets import DataError, Images, find_splits, match_labels, open_images
from vit.data.training_images import TrainingData, open_data
from vit.document import CheckpointError, Document, read_document
from vit.training.examples import EXAMPLES
from vit.training.recipe import FINETUNE, PRESETS, PROBE_FIELDS, Recipe, RecipeError, TrainOptions

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint
    from vit.model import ViT

STEPS = 10  # per epoch, at least: with one or two a run of the usual length stays at chance
FEW = 1000  # images, below which a pretrained model is advised


@dataclass(frozen=True)
class PreparedRun:
    """Arguments for `vit.training.train.train`, from the options and the weights that they name."""

    recipe: Recipe
    model: ViT
    data: TrainingData
    preprocess: Preprocess
    teacher: ViT | None
    notes: dict[str, Any]


@dataclass(frozen=True)
class CheckedRun:
    """Parts of a run that are known before weights are read."""

    recipe: Recipe
    data: TrainingData
    config: ViTConfig  # of the model that will be trained


def check_training(options: TrainOptions) -> CheckedRun:
    """Find what does not fit, without reading weights and without torch.

    Args:
        options: of the command line.

    Raises:
        RecipeError, ConfigError, DataError, CheckpointError: saying which word does not fit.
    """
    recipe = choose_recipe(options)
    if not options.source and (recipe.freeze or recipe.name == FINETUNE.name):
        need = (
            "trains a head on frozen features; give the backbone"
            if recipe.freeze
            else "starts from trained weights; give them"
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
    if recipe.freeze and (unused := sorted({*options.recipe_changes} - PROBE_FIELDS - {"merge_tokens"})):
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
    choose_config(options, recipe, ("",), source)  # before a large folder is searched for images
    data = open_data(options.data, holdout=recipe.holdout, seed=recipe.seed)
    recipe, notes = fit_batch(options, recipe, len(data.train))
    data = replace(data, notes=(*data.notes, *notes))
    config = choose_config(options, recipe, data.labels, source)
    merge_schedule(config, recipe.merge_tokens)  # does the model have so many patches?
    if teacher and teacher.labels != data.labels:
        raise CheckpointError(
            f"{options.teacher}: the teacher's classes ({list_first(teacher.labels)}) are not those of "
            f"the images ({list_first(data.labels)}); fine-tune it on the same classes first"
        )
    return CheckedRun(recipe, data, config)


def prepare_training(options: TrainOptions, checked: CheckedRun | None = None) -> PreparedRun:
    """Put together what `python -m vit train` was asked for.

    Args:
        options: of the command line.
        checked: what `check_training` returned for them; None to check them now.

    Raises:
        RecipeError, ConfigError, DataError, CheckpointError: saying which word does not fit.
    """
    checked = checked or check_training(options)
    from vit.checkpoint import load_checkpoint

    recipe, data = checked.recipe, checked.data
    source = load_checkpoint(options.source) if options.source else None
    model, preprocess = build_model(checked, source)
    if options.white_level is not None:
        try:
            preprocess = replace(preprocess, white_level=options.white_level)
        except ValueError as error:  # a level that no 16 bits have
            raise RecipeError(f"--white-level: {error}") from error
    teacher = load_checkpoint(options.teacher) if options.teacher else None
    notes = {"from": source.digest, "from_name": source.name} if source else {}
    if teacher:
        notes["teacher"] = teacher.digest
    return PreparedRun(recipe, model, data, preprocess, teacher.model if teacher else None, notes)


def choose_recipe(options: TrainOptions) -> Recipe:
    """Return the preset that fits the options, with the fields that they set.

    Raises:
        RecipeError: for a name that is no preset, and values that no recipe can have.
    """
    name = options.preset
    if name is None:
        fallback = options.data if options.data in EXAMPLES and not options.model else "scratch"
        name = "finetune" if options.source else fallback
    recipes = dict(PRESETS) | {key: example.recipe for key, example in EXAMPLES.items()}
    if name not in recipes:
        nearest = suggest(name, recipes)
        raise RecipeError(f"unknown preset {name!r}; known: {', '.join(recipes)}{nearest}")
    return replace(recipes[name], **options.recipe_changes)


def fit_batch(options: TrainOptions, recipe: Recipe, images: int) -> tuple[Recipe, tuple[str, ...]]:
    """Reduce the batch until an epoch has `STEPS` steps, with a note; a given batch stays.

    Args:
        options: of the command line, which may set the batch.
        recipe: the batch of an example's recipe stays, since its figures were measured with it.
        images: number of images to train on.

    Returns:
        the recipe, and a note where the batch is or should be another one.
    """
    fitting = 1 << max(images // STEPS, 2).bit_length() - 1  # a power of two
    steps = max(images // recipe.batch, 1)
    if recipe.freeze or steps >= STEPS or recipe.batch <= fitting or recipe.name in EXAMPLES:
        return recipe, ()
    few = f"{format_count(images, 'image')} to train on"
    if "batch" in options.recipe_changes:
        note = f"{few}: a batch of {recipe.batch} gives {format_count(steps, 'step')} per epoch, which learns slowly"
        return recipe, (f"{note}; --batch {fitting} gives {max(images // fitting, 1)}",)
    steps = max(images // fitting, 1)
    note = f"{few}: --batch {fitting}, not {recipe.batch}, for {format_count(steps, 'step')} per epoch"
    if options.source is None and images < FEW:
        note += "; so few images learn more from a pretrained model (--from)"
    return replace(recipe, batch=fitting), (note,)


def choose_config(
    options: TrainOptions, recipe: Recipe, labels: tuple[str, ...], source: Document | None
) -> ViTConfig:
    """Return the shape of the model to train.

    Args:
        options: of the command line.
        recipe: that of an example has a shape of its own.
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


def build_model(checked: CheckedRun, source: Checkpoint | None) -> tuple[ViT, Preprocess]:
    """Return the model to train, new or made from a checkpoint, and its preprocessing.

    Args:
        checked: what `check_training` returned.
        source: the checkpoint to start from; None for random weights.
    """
    from vit.adapt import adapt, resize
    from vit.model import new_model

    config, labels = checked.config, checked.data.labels
    if source is None:
        return new_model(config, checked.recipe.seed), choose_preprocess(config, checked.recipe)
    if source.labels == labels:  # the same classes: the head keeps learning
        model = resize(source.model, config.image_size)
    else:
        model = adapt(source.model, classes=len(labels), image_size=config.image_size)
    # The shorter edge before a crop grows in proportion.
    size, before = config.image_size, source.preprocess
    edge = scale_resize_to(before.resize_to, max(size) / max(before.size))
    return model, replace(before, size=size, resize_to=edge)


def choose_preprocess(config: ViTConfig, recipe: Recipe) -> Preprocess:
    """Return the preprocessing of a new model: photos keep their shape and lose their edges.

    The images of the examples are square already.
    """
    if recipe.name in EXAMPLES:
        return replace(EXAMPLES[recipe.name].preprocess, size=config.image_size)
    return Preprocess(size=config.image_size, resize="crop", interpolation="bicubic")


def open_test_images(source: str, labels: tuple[str, ...]) -> Images:
    """Open the test split of `source`, else its val split, else all of it.

    Args:
        source: folder or name of the images.
        labels: of the model; the class indices of the images are those of the model.

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
