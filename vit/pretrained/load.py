"""Loading an imported model: the weights are recognized, renamed and checked tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.images.preprocess import Preprocess
from runtime.text import counted
from vit.adapt import interpolate_position
from vit.config import ConfigError, ViTConfig
from vit.model import ViT, compare_shapes
from vit.pretrained.claims import OtherModelError, refuse_other_models
from vit.pretrained.config import MOST_PATCHES, Described, config_of, doubted
from vit.pretrained.convert import arranged, in_color, settled_head
from vit.pretrained.documents import SourceError, labels_of, read_json, read_preprocessor
from vit.pretrained.formats import Tensors, recognize
from vit.pretrained.preprocessing import View, view_of
from vit.pretrained.state_dict import unwrapped
from vit.pretrained.weight_files import description_folder, find_weights, read_weights

__all__ = ["ImportedModel", "SourceError", "load_model", "read_source"]

LISTED = 8  # names shown of each kind of misfit
HINTS = (
    (r"swin|layers\.\d+\.blocks|downsample", "a hierarchical model (Swin) is not a ViT of one width"),
    (r"fc1_g|rope|freqs|q_proj", "its positions are rotary, in a way that this model does not know (EVA-02)"),
    (r"mlp\.norm|attn\.norm|inner_attn", "it has norms inside its blocks that this model has not"),
    (r"conv|stem|stages", "it has convolutions besides the patch embedding"),
)
ONNX_WAY = (
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
    assumed: tuple[str, ...]  # what the source did not say, a sentence each
    notes: tuple[str, ...] = ()  # what was chosen among several things that it did say


def read_source(
    source: Path | str,
    *,
    heads: int | None = None,
    activation: str | None = None,
    weights: str | None = None,
) -> ImportedModel:
    """Read a folder or file of weights; the format is recognized from the names of the tensors.

    Args:
        source: a file of weights, or a folder with one.
        heads: attention heads, where the source does not say it; None reads or looks it up.
        activation: of the MLPs, as in `ViTConfig`; None reads or assumes it.
        weights: which set of weights, where a file has several; None prefers a moving average.

    Raises:
        SourceError: for a file that cannot be read, a format that is not known, and for tensors that are
            missing, left over or misshapen, listing them.
    """
    file = find_weights(Path(source))
    folder = description_folder(Path(source), file)
    found = unwrapped(read_weights(file), file, weights=weights)
    form = recognize(found.tensors)
    if form is None:
        some = ", ".join(sorted(found.tensors)[:3]) or "no tensors"
        known = "Hugging Face, timm, torchvision or Google's .npz"
        raise SourceError(f"{file}: expected the tensors of a ViT of {known}, found {some}, …; {ONNX_WAY}")
    document = read_json(folder / "config.json") if folder else {}
    described = Described.of(heads_in(found.tensors) | document, found.arguments, heads, activation)
    view = view_of(form, document, read_preprocessor(folder)[0] if folder else {}, file)
    unknown: Tensors = {}
    try:
        renamed, unknown = form.rename(found.tensors)
        refuse_other_models(unknown)
        renamed, unknown, chosen = settled_head(renamed, unknown)
        renamed, converted = in_color(renamed)
        fitted, extra = arranged(form, renamed, described)
        config, assumed = config_of(form, fitted, extra, described, view)
    except (ConfigError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise SourceError(not_a_vit(file, error, unknown)) from error
    model = loaded(file, config, fitted, unknown)
    try:
        model, preprocess, sized = seen(model, view)
    except ValueError as error:  # of ViTConfig and Preprocess: sizes that they do not have
        raise SourceError(f"{file}: the preprocessing does not fit the model ({error})") from error
    labels, guessed = labels_of(document, config.classes)
    assumed = [*view.assumed, *assumed, *guessed]
    notes = (*found.notes, *chosen, *converted, *sized, *doubted(fitted, config.heads))
    return ImportedModel(model, preprocess, labels, form.name, tuple(assumed), notes)


def load_model(source: Path | str) -> ViT:
    """Return the model in a folder or file of Hugging Face, timm, torchvision or Google, in evaluation mode.

    Raises:
        SourceError: for a file that cannot be read, and tensors that are missing, left over or misshapen.
    """
    return read_source(source).model


def not_a_vit(file: Path, error: Exception, unknown: Iterable[str]) -> str:
    """A message for what tensors or description do not allow; a missing --heads is no reason for ONNX."""
    said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    if isinstance(error, OtherModelError):
        return f"{file}: {said}; {ONNX_WAY}"
    if isinstance(error, SourceError) or any(w in said for w in ("--heads", "--activation", "channels")):
        return f"{file}: {said}"
    unfit = misfit([], sorted(unknown), [])
    return (
        f"{file}: the tensors describe no ViT that is known here ({said}){unfit and '; ' + unfit}; {ONNX_WAY}"
    )


def heads_in(tensors: Tensors) -> dict[str, int]:
    """The number of heads where a tensor tells it: Flax's kernels are `[in, heads, features]`."""
    shapes = [value.shape for name, value in tensors.items() if name.endswith("/query/kernel")]
    return {"num_attention_heads": shapes[0][1]} if shapes and len(shapes[0]) == 3 else {}


def seen(model: ViT, view: View) -> tuple[ViT, Preprocess, list[str]]:
    """Join the model's size and the view's: the source's own size is followed where the positions can be."""
    config, wanted = model.config, view.size
    if wanted is None or wanted == config.image_size:
        return model, view.sized(config.image_size), []
    height, width = config.image_size
    fits = not (wanted[0] % config.patch_size or wanted[1] % config.patch_size)
    movable = not (config.rotary or config.attention_bias)
    if view.by_input and fits and movable:
        patches = wanted[0] // config.patch_size * (wanted[1] // config.patch_size)
        if patches > MOST_PATCHES:
            raise ConfigError(
                f"{wanted[0]}x{wanted[1]} pixels are {patches:,} patches (limit: {MOST_PATCHES:,})"
            )
        resized = ViT(replace(config, image_size=wanted))
        position = interpolate_position(
            model.position.detach(), config.grid, resized.config.grid, antialias=False
        )
        resized.load_state_dict(model.state_dict() | {"position": position})
        note = f"the model is for {height}x{width} pixels, its preprocessing gives {wanted[0]}x{wanted[1]}: "
        return (
            resized.eval(),
            view.sized(wanted),
            [note + "positions interpolated to that, as the source does"],
        )
    note = f"the preprocessing says {wanted[0]}x{wanted[1]} pixels, the model is for {height}x{width}: "
    note += "the same view is scaled to the model's size"
    return model, view.sized(config.image_size), [note]


def loaded(file: Path, config: ViTConfig, tensors: Tensors, unknown: Iterable[str]) -> ViT:
    missing, left_over, misshapen = compare_shapes(config, {n: each.shape for n, each in tensors.items()})
    left_over = sorted([*unknown, *left_over])
    if unfit := misfit(missing, left_over, misshapen):
        raise SourceError(f"{file}: {unfit}; {ONNX_WAY}")
    model = ViT(config)
    model.load_state_dict(tensors)
    return model.eval()


def misfit(missing: list[str], left_over: list[str], misshapen: list[str]) -> str:
    """List the tensors that do not fit, with a hint if the reason is known; empty if all fit."""
    kinds = (("missing", missing), ("left over", left_over), ("misshapen", misshapen))
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{', …' * (len(names) > LISTED)}"
        for kind, names in kinds
        if names
    ]
    hints = [hint for pattern, hint in HINTS if any(re.search(pattern, name) for name in left_over)]
    return "; ".join([*parts, *hints]) and "tensors do not fit: " + "; ".join([*parts, *hints])


def with_labels(found: ImportedModel, file: Path, labels: tuple[str, ...]) -> ImportedModel:
    """Return the same model with the labels that were read from a file.

    Raises:
        SourceError: when their number is not that of the classes.
    """
    classes = found.model.config.classes
    if len(labels) != classes:
        there, expected = counted(len(labels), "label"), counted(classes, "class", "classes")
        raise SourceError(f"{file}: has {there}, the model has {expected}")
    assumed = tuple(sentence for sentence in found.assumed if "--labels" not in sentence)
    return replace(found, labels=labels, assumed=assumed)
