"""The whole import: the weights are recognized, renamed, converted and checked tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.errors import InputError
from runtime.images.preprocess import Preprocess
from runtime.text import format_count
from vit.adapt import interpolate_position
from vit.checkpoint import Checkpoint, digest_tensors
from vit.config import ConfigError
from vit.model import ViT, compare_shapes
from vit.pretrained.config import MOST_PATCHES, build_config, check_heads
from vit.pretrained.convert import check_dimensions, choose_head, convert_gray, convert_tensors
from vit.pretrained.description import (
    THRESHOLD,
    THRESHOLD_ASSUMED,
    Description,
    OtherModelError,
    SourceError,
    UnstatedError,
    choose_labels,
    gives_several_labels,
    read_json,
    read_preprocessor,
    refuse_other_models,
)
from vit.pretrained.formats import Tensors, recognize_format
from vit.pretrained.preprocessing import View, choose_view
from vit.pretrained.state_dict import unwrap_state_dict
from vit.pretrained.weight_files import fetch_weights, find_description_folder, find_weights, read_weights

LISTED = 8  # names shown of each kind of misfit
HINTS = (
    (r"swin|layers\.\d+\.blocks|downsample", "a hierarchical model (Swin) is not a ViT of one width"),
    (r"fc1_g|rope|freqs|q_proj", "its positions are rotary, in a way that this model does not know (EVA-02)"),
    (r"mlp\.norm|attn\.norm|inner_attn", "it has norms inside its blocks that this model has not"),
    (r"conv|stem|stages", "it has convolutions besides the patch embedding"),
)
ONNX_ADVICE = (
    "what this model cannot be, ONNX can: export it with its own library (torch.onnx.export, "
    "optimum-cli export onnx), then run `python -m export --onnx MODEL.onnx --preprocess SPEC.json "
    "--quantize --calibration PHOTOS`"
)


@dataclass(frozen=True)
class ImportedModel:
    """An imported model, and the facts about its use that its source gives."""

    model: ViT  # in evaluation mode
    preprocess: Preprocess
    labels: tuple[str, ...]
    format: str
    assumed: tuple[str, ...]  # what the source does not state, one sentence each
    notes: tuple[str, ...] = ()  # what was chosen among several things that it states
    labels_assumed: tuple[str, ...] = ()  # of `assumed`, on the labels
    thresholds: tuple[float, ...] | None = None  # one per label, of a model with several labels per image


def import_model(
    source: Path | str, *, heads: int | None = None, activation: str | None = None, weights: str | None = None
) -> ImportedModel:
    """Read a folder or file of weights; the format is recognized from the names of the tensors.

    Args:
        source: a file of weights, or a folder with one; or hf:OWNER/NAME, on the Hugging Face hub.
        heads: attention heads, where the source does not state them; None reads or looks them up.
        activation: of the MLPs, as in `ViTConfig`; None reads or assumes it.
        weights: which set of weights, where a file has several; None prefers a moving average.

    Returns:
        the model with its preprocessing and labels, and what was assumed or chosen.

    Raises:
        SourceError: for a file that cannot be read, a format that is not known, and for tensors that are
            missing, left over or misshapen, listing them.
        UnstatedError: where the number of heads is in neither source nor tensors.
    """
    source = fetch_weights(Path(source))
    file = find_weights(source)
    folder = find_description_folder(source, file)
    found = unwrap_state_dict(read_weights(file), file, weights=weights)
    form = recognize_format(found.tensors)
    if form is None:
        some = ", ".join(sorted(found.tensors)[:3]) or "no tensors"
        known = "Hugging Face, timm, torchvision or Google's .npz"
        raise SourceError(f"{file}: expected the tensors of a ViT of {known}, found {some}, …; {ONNX_ADVICE}")
    document = read_json(folder / "config.json") if folder else {}
    facts = _read_flax_heads(found.tensors) | document
    description = Description.from_documents(facts, found.arguments, heads, activation)
    view = choose_view(form, document, read_preprocessor(folder)[0] if folder else {}, file)
    unknown: Tensors = {}
    try:
        tensors, unknown = form.rename(found.tensors)
        refuse_other_models(unknown)
        check_dimensions(tensors)
        tensors, unknown, notes = choose_head(tensors, unknown)
        tensors, more = convert_gray(tensors)
        tensors, fields = convert_tensors(form, tensors, description)
        config, assumed = build_config(form, tensors, fields, description, view)
    except SourceError as error:
        raise type(error)(f"{file}: {error}") from error
    except OtherModelError as error:
        raise SourceError(f"{file}: {error}; {ONNX_ADVICE}") from error
    except InputError as error:
        known = f"the tensors describe no ViT that is known here ({error})"
        unfit = filter(None, (known, _describe_misfit([], sorted(unknown), []), ONNX_ADVICE))
        raise SourceError(f"{file}: {'; '.join(unfit)}") from error
    missing, left_over, misshapen = compare_shapes(config, {n: each.shape for n, each in tensors.items()})
    if misfit := _describe_misfit(missing, sorted([*unknown, *left_over]), misshapen):
        raise SourceError(f"{file}: {misfit}; {ONNX_ADVICE}")
    model = ViT(config).eval()
    model.load_state_dict(tensors)
    try:
        model, preprocess, resized = resize_to_preprocessing(model, view)
    except ValueError as error:  # of ViTConfig and Preprocess: sizes that they do not have
        raise SourceError(f"{file}: the preprocessing does not fit the model ({error})") from error
    labels, guessed = choose_labels(document, config.classes)
    several = gives_several_labels(document)
    return ImportedModel(
        model,
        preprocess,
        labels,
        form.name,
        (*view.assumed, *assumed, *guessed, *([THRESHOLD_ASSUMED] if several else [])),
        (*found.notes, *notes, *more, *resized, *check_heads(tensors, config.heads)),
        tuple(guessed),
        (THRESHOLD,) * len(labels) if several else None,
    )


def import_vit(source: Path | str) -> ViT:
    """Return the model in a folder or file of weights, in evaluation mode; raises as `import_model`."""
    return import_model(source).model


def import_checkpoint(source: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    """Import weights as a checkpoint in memory, from which a training can start.

    Args:
        source: as of `import_model`.

    Returns:
        the checkpoint, and one sentence per choice and per assumption.

    Raises:
        SourceError: as `import_model`.
    """
    try:
        found = import_model(source)
    except UnstatedError as error:
        raise UnstatedError(f"{error} (an option of python -m vit import)") from error
    assumed = (f"assumed, since the source does not say: {sentence}" for sentence in found.assumed)
    checkpoint = Checkpoint(
        config=found.model.config,
        preprocess=found.preprocess,
        labels=found.labels,
        thresholds=found.thresholds,
        history=[],
        recipe={"imported": found.format},
        finished=True,
        model=found.model,
        digest=digest_tensors(found.model.state_dict()),
        path=find_weights(source),
    )
    return checkpoint, (*found.notes, *assumed)


def replace_labels(found: ImportedModel, file: Path, labels: tuple[str, ...]) -> ImportedModel:
    """Return the same model with the labels that were read from a file, one per class."""
    classes = found.model.config.classes
    if len(labels) != classes:
        there, expected = format_count(len(labels), "label"), format_count(classes, "class", "classes")
        raise SourceError(f"{file}: has {there}, the model has {expected}")
    assumed = tuple(sentence for sentence in found.assumed if sentence not in found.labels_assumed)
    return replace(found, labels=labels, assumed=assumed, labels_assumed=())


def _read_flax_heads(tensors: Tensors) -> dict[str, int]:
    """Return the number of heads where a shape shows it: Flax's kernels are `[in, heads, features]`."""
    shapes = [value.shape for name, value in tensors.items() if name.endswith("/query/kernel")]
    return {"num_attention_heads": shapes[0][1]} if shapes and len(shapes[0]) == 3 else {}


def _describe_misfit(missing: Sequence[str], left_over: Sequence[str], misshapen: Sequence[str]) -> str:
    """List the tensors that do not fit, with a hint if the reason is known; empty if all fit."""
    kinds = (("missing", missing), ("left over", left_over), ("misshapen", misshapen))
    found = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{', …' * (len(names) > LISTED)}"
        for kind, names in kinds
        if names
    ]
    found += [hint for pattern, hint in HINTS if any(re.search(pattern, name) for name in left_over)]
    return f"tensors do not fit: {'; '.join(found)}" if found else ""


def resize_to_preprocessing(model: ViT, view: View) -> tuple[ViT, Preprocess, list[str]]:
    """Join the model's size and the view's: the source's own size is followed where the positions can be."""
    config, size = model.config, view.size
    if size is None or size == config.image_size:
        return model, view.scale_to(config.image_size), []
    height, width = config.image_size
    fits = not (size[0] % config.patch_size or size[1] % config.patch_size)
    if not (view.by_input and fits) or config.rotary or config.attention_bias:
        note = f"the preprocessing says {size[0]}x{size[1]} pixels, the model is for {height}x{width}: "
        note += "the same view is scaled to the model's size"
        return model, view.scale_to(config.image_size), [note]
    patches = size[0] // config.patch_size * (size[1] // config.patch_size)
    if patches > MOST_PATCHES:
        raise ConfigError(f"{size[0]}x{size[1]} pixels are {patches:,} patches (limit: {MOST_PATCHES:,})")
    resized = ViT(replace(config, image_size=size))
    old, new = config.grid, resized.config.grid
    # transformers does not average where the grid shrinks.
    position = interpolate_position(model.position.detach(), old, new, antialias=False)
    resized.load_state_dict(model.state_dict() | {"position": position})
    note = f"the model is for {height}x{width} pixels, its preprocessing gives {size[0]}x{size[1]}: "
    note += "positions interpolated to that, as the source does"
    return resized.eval(), view.scale_to(size), [note]
