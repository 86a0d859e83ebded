"""From the options of `python -m vit train` to a model, images and a recipe that fit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.plan import PlanError, QuantizationPlan, read_plan
from runtime.images.preprocess import Preprocess, scale_resize_to
from runtime.text import format_count, list_first, suggest
from vit.config import PLAIN_HEAD, ConfigError, ViTConfig, check_grid, make_config, merge_schedule
from vit.data.datasets import DataError, Images, find_splits, match_image_labels, open_images
from vit.data.training_images import TrainingData, open_data
from vit.document import CheckpointError, Document, read_document
from vit.run_folder import FLOAT_MODEL
from vit.training.examples import EXAMPLES
from vit.training.recipe import FINETUNE, PRESETS, PROBE_FIELDS, QUANTIZE, Recipe, RecipeError, TrainOptions

if TYPE_CHECKING:
    from vit.checkpoint import Checkpoint
    from vit.model import ViT

STEPS = 10  # per epoch, at least: with one or two a run of the usual length stays at chance
FOLLOWED = ("holdout", "seed", "crop", "flip", "shift")  # fields that training with a plan takes over
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
    plan: QuantizationPlan | None = None


@dataclass(frozen=True)
class CheckedRun:
    """Parts of a run that are known before weights are read."""

    recipe: Recipe
    data: TrainingData
    config: ViTConfig  # of the model that will be trained
    source: Document | None = None  # that --from names; a Checkpoint where its weights are read already
    plan: QuantizationPlan | None = None


def check_training(options: TrainOptions) -> CheckedRun:
    """Find what does not fit, without reading weights and without torch.

    Raises:
        RecipeError, ConfigError, DataError, CheckpointError, PlanError: saying which word does not fit.
    """
    recipe = choose_recipe(options)
    plan = None if options.plan is None else read_plan(options.plan)
    if not options.source and (recipe.freeze or recipe.name == FINETUNE.name):
        need = "starts from trained weights; give them"
        need = "trains a head on frozen features; give the backbone" if recipe.freeze else need
        raise RecipeError(
            f"preset {recipe.name} {need} with --from CHECKPOINT (python -m vit import makes one), or train "
            "from random weights with --preset scratch"
        )
    if recipe.freeze:
        unused = sorted({*options.recipe_changes} - PROBE_FIELDS - {"merge_tokens"})
        dense = "trains a head on the features of a dense backbone; leave --merge-tokens out"
        other = f"is a logistic regression on frozen features and has no {''.join(unused[:1])}; leave it out"
        alone = "learns from labels alone; leave --teacher out"
        for wrong, why in ((recipe.merge_tokens, dense), (unused, other), (options.teacher, alone)):
            if wrong:
                raise RecipeError(f"preset {recipe.name} {why}, or train the whole model (--preset finetune)")
    _check_plan_options(options, recipe)
    source, said = open_source(options.source) if options.source else (None, ())
    if plan is not None and source is not None:
        recipe = follow_source(recipe, options, source)
    teacher = read_document(options.teacher) if options.teacher else None
    if source and (options.model or options.patch_size):
        raise ConfigError(
            "--model and --patch-size describe a new model; --from brings its own: give one of them"
        )
    choose_config(options, recipe, ("",), source)  # before a large folder is searched for images
    data = open_data(options.data, holdout=recipe.holdout, seed=recipe.seed)
    recipe, notes = fit_batch(options, recipe, len(data.train))
    recipe, more = fit_labels(options, recipe, data)
    data = replace(data, notes=(*said, *data.notes, *notes, *more))
    config = choose_config(options, recipe, data.labels, source)
    merge_schedule(config, recipe.merge_tokens)  # does the model have so many patches?
    if teacher and (teacher.thresholds is not None) != data.train.several:
        labels = "several labels" if data.train.several else "one label"
        raise CheckpointError(
            f"{options.teacher}: expected a teacher with {labels} per image, as the images have; train it on "
            "such images first"
        )
    if teacher and teacher.labels != data.labels:
        raise CheckpointError(
            f"{options.teacher}: the teacher's classes ({list_first(teacher.labels)}) are not those of "
            f"the images ({list_first(data.labels)}); fine-tune it on the same classes first"
        )
    _check_plan_source(options, source, data.labels)
    return CheckedRun(recipe, data, config, source, plan)


def _check_plan_options(options: TrainOptions, recipe: Recipe) -> None:
    """Refuse what does not go with --plan: it trains one model, the one of --from, as it is."""
    if options.plan is None:
        if recipe.name == QUANTIZE.name:
            raise RecipeError(f"preset {recipe.name} trains with the plan of an export; add --plan PLAN")
        return
    if not options.source:
        raise RecipeError("--plan trains the float model that it was made for; add --from RUN")
    given = {"--teacher": options.teacher, "--image-size": options.image_size}
    given |= {"--merge-tokens": recipe.merge_tokens, "--white-level": options.white_level}
    given |= {"--preset probe": recipe.freeze}
    if wrong := next((name for name, value in given.items() if value), None):
        why = "the model of --from is the teacher, and the plan says what is quantized and merged"
        raise RecipeError(f"{wrong} does not go with --plan: {why}; leave it out")


def _check_plan_source(options: TrainOptions, source: Document | None, labels: tuple[str, ...]) -> None:
    """Refuse a model of --from that cannot be the teacher of itself in INT8."""
    if options.plan is None or source is None:
        return
    expected = f"{options.source}: expected beside --plan"
    if type(source) is not Document:  # `open_source` has imported it
        raise RecipeError(f"{expected} a checkpoint, found other weights; python -m vit import makes one")
    if "plan" in source.recipe:
        raise RecipeError(f"{expected} a float model, found one trained with a plan; give its {FLOAT_MODEL}")
    if source.labels != labels:
        raise RecipeError(
            f"{expected} images of the model's classes ({list_first(source.labels)}), found "
            f"{list_first(labels)}; give those that it was trained on"
        )


def follow_source(recipe: Recipe, options: TrainOptions, source: Document) -> Recipe:
    """Return the recipe with the held-out images and the crops of the run of `source`; options come first.

    Images that judge an export, or choose its plan, must not be trained on in between. What a float model saw
    is what its teaching is worth something on: flipped digits are not.
    """
    known = source.recipe.get("recipe", {})
    same = {name: known[name] for name in FOLLOWED if name in known}
    return replace(recipe, **{**same, **options.recipe_changes})


def open_source(path: Path) -> tuple[Document, tuple[str, ...]]:
    """Return the document of the checkpoint to start from, and sentences about what was assumed.

    Weights of another project, and a name on the Hugging Face hub, give a whole `Checkpoint`.
    """
    from vit.pretrained.hub import is_hub_name
    from vit.pretrained.weight_files import fetch_weights, holds_weights

    file = fetch_weights(path)
    if holds_weights(file):
        from vit.pretrained.load import import_checkpoint

        return import_checkpoint(file)
    if not is_hub_name(path):
        return read_document(file), ()
    from vit.checkpoint import load_checkpoint

    return load_checkpoint(file), ()


def prepare_training(options: TrainOptions, checked: CheckedRun | None = None) -> PreparedRun:
    """Put together what `python -m vit train` was asked for; raises as `check_training`.

    `checked` is what `check_training` returned for the options; None checks them now.
    """
    checked = checked or check_training(options)
    from vit.checkpoint import Checkpoint, load_checkpoint
    from vit.pretrained.hub import find_snapshot
    from vit.training.fake_quantization import check_plan

    recipe, data = checked.recipe, checked.data
    known = checked.source if isinstance(checked.source, Checkpoint) else None
    source = known or (load_checkpoint(options.source) if options.source else None)
    model, preprocess = build_model(checked, source)
    if options.white_level is not None:
        try:
            preprocess = replace(preprocess, white_level=options.white_level)
        except ValueError as error:  # a level that no 16 bits have
            raise RecipeError(f"--white-level: {error}") from error
    teacher = load_checkpoint(options.teacher) if options.teacher else None
    if checked.plan is not None:
        assert source is not None  # check_training
        teacher = load_checkpoint(source.path)  # its weights stay as they are
        try:
            check_plan(model, checked.plan)
        except PlanError as error:
            raise PlanError(f"{options.plan}: {error}") from error
    notes: dict[str, Any] = {}
    if source:
        notes |= {"from": source.digest, "from_name": find_snapshot(source.path) or source.name}
    if teacher:
        notes["teacher"] = teacher.digest
    if checked.plan is not None:
        notes["plan"] = checked.plan.digest
    asked = teacher.model if teacher else None
    return PreparedRun(recipe, model, data, preprocess, asked, notes, checked.plan)


def choose_recipe(options: TrainOptions) -> Recipe:
    """Return the preset that fits the options, with the fields that they set."""
    fallback = options.data if options.data in EXAMPLES and not options.model else "scratch"
    fallback = "quantize" if options.plan else "finetune" if options.source else fallback
    name = fallback if options.preset is None else options.preset
    recipes = dict(PRESETS) | {key: example.recipe for key, example in EXAMPLES.items()}
    if name not in recipes:
        raise RecipeError(f"unknown preset {name!r}; known: {', '.join(recipes)}{suggest(name, recipes)}")
    return replace(recipes[name], **options.recipe_changes)


def fit_batch(options: TrainOptions, recipe: Recipe, images: int) -> tuple[Recipe, tuple[str, ...]]:
    """Reduce the batch until an epoch of `images` has `STEPS` steps, with a note; a given batch stays.

    The batch of an example's recipe stays too, since its figures were measured with it.
    """
    fitting = 1 << max(images // STEPS, 2).bit_length() - 1  # a power of two
    steps = max(images // recipe.batch, 1)
    if recipe.freeze or steps >= STEPS or recipe.batch <= fitting or recipe.name in EXAMPLES:
        return recipe, ()
    few = f"{format_count(images, 'image')} to train on"
    better = max(images // fitting, 1)
    if "batch" in options.recipe_changes:
        slow = f"a batch of {recipe.batch} gives {format_count(steps, 'step')} per epoch, which learns slowly"
        return recipe, (f"{few}: {slow}; --batch {fitting} gives {better}",)
    note = f"{few}: --batch {fitting}, not {recipe.batch}, for {format_count(better, 'step')} per epoch"
    if options.source is None and images < FEW:
        note += "; so few images learn more from a pretrained model (--from)"
    return replace(recipe, batch=fitting), (note,)


def fit_labels(options: TrainOptions, recipe: Recipe, data: TrainingData) -> tuple[Recipe, tuple[str, ...]]:
    """Turn off what needs one label per image where an image has several, with a note; refuse it if given."""
    if not data.train.several:
        return recipe, ()
    for name in ("smoothing", "balance"):
        if options.recipe_changes.get(name):
            one = "is for one label per image"
            raise RecipeError(f"{name} {one}, and {options.data} has several; leave it out")
    note = "several labels per image: a sigmoid per label, its cross-entropy as the loss"
    off = " (label smoothing is off)" if recipe.smoothing else ""
    return replace(recipe, smoothing=0.0), (note + off,)


def choose_config(
    options: TrainOptions, recipe: Recipe, labels: tuple[str, ...], source: Document | None
) -> ViTConfig:
    """Return the shape of the model to train; `source` is the document of the checkpoint to start from."""
    changes: dict[str, Any] = {"classes": len(labels)}
    if options.image_size:
        changes["image_size"] = (options.image_size, options.image_size)
    if source:
        if source.labels != labels:  # a new head, without the layer that some pre-trained ones have
            changes |= PLAIN_HEAD
        config = replace(source.config, **changes)
        check_grid(source.config, config)
        return config
    if options.patch_size:
        changes["patch_size"] = options.patch_size
    if recipe.name in EXAMPLES and not options.model:
        return replace(EXAMPLES[recipe.name].config, **changes)
    return make_config(options.model or "tiny", **changes)


def build_model(checked: CheckedRun, source: Checkpoint | None) -> tuple[ViT, Preprocess]:
    """Return the model to train, new or made from a checkpoint, and its preprocessing."""
    from vit.adapt import adapt_model, resize_model
    from vit.model import new_model

    config, labels = checked.config, checked.data.labels
    if source is None:
        return new_model(config, checked.recipe.seed), choose_preprocess(config, checked.recipe)
    several = source.thresholds is not None
    if source.labels == labels and several == checked.data.train.several:  # the head keeps learning
        model = resize_model(source.model, config.image_size)
    else:
        model = adapt_model(source.model, classes=len(labels), image_size=config.image_size)
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
    """Open the test split of `source`, else its val split, else all of it, with the model's class indices.

    Raises a `DataError` for images whose classes are not known, or not among the model's `labels`.
    """
    if not labels:
        raise DataError("the model has no classes, so no answer can be judged; leave --data out")
    split = next((name for name in ("test", "val") if name in find_splits(source)), "all")
    images = match_image_labels(open_images(source, split), labels)  # type: ignore[arg-type]
    if images.targets is None:
        named = f"images in folders named as the model's {len(labels)} classes ({list_first(labels)})"
        raise DataError(f"{source}: expected {named}, found images without classes")
    return images
