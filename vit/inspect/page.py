"""Plots of a run as PNG files and one HTML page, in the style of the export's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from matplotlib.figure import Figure

from runtime.text import format_count
from runtime.writing import write_atomically
from vit.checkpoint import Checkpoint, describe_test
from vit.data.datasets import Images
from vit.data.public import public_name
from vit.document import FILE_NAME
from vit.inspect.plots import (
    plot_confusion,
    plot_curve,
    plot_filters,
    plot_mistakes,
    plot_positions,
    plot_rollout,
    save_png,
)
from vit.inspect.predictions import Predictions, predict_labels, show_attention
from vit.page.confusion import (
    MATRIX_CLASSES,
    are_short,
    confusion_matrix,
    distinguish_labels,
    rank_confusions,
)
from vit.page.image_uri import enlarge, file_uri, jpeg_uri
from vit.page.template import render_page
from vit.training.evaluate import describe_kept

PAGE = "index.html"


def write_plots(checkpoint: Checkpoint, images: Images | None, out: Path) -> Path:
    """Write every plot that is possible into `out` as PNG, and a page with all of them; return the page.

    Without `images` of known classes confusion, attention and mistakes are left out, with a note.
    """
    history = checkpoint.history
    curves = {kind: plot_curve(history, kind) for kind in ("loss", "accuracy")} if len(history) > 1 else {}
    predictions = None if images is None else predict_labels(checkpoint, images)
    page = render_page(
        "vit.inspect",
        "plots.html.j2",
        name=checkpoint.name,
        trained_on=_describe_data(checkpoint.recipe),
        facts=_facts(checkpoint, images, predictions),
        curves=[(kind, _save(figure, out, kind)) for kind, figure in curves.items()],
        validated=any("val_loss" in row for row in history),
        imported="imported" in checkpoint.recipe,
        kept=_describe_epoch(checkpoint),
        command=_next_command(checkpoint),
        filters=_save(plot_filters(checkpoint.model), out, "patch-embedding-filters"),
        positions=_save(plot_positions(checkpoint.model), out, "position-embedding-similarity"),
        judged=None if predictions is None else _show_predictions(checkpoint, predictions, out),
        digest=checkpoint.digest,
    )
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def _save(figure: Figure, out: Path, name: str) -> str:
    return file_uri(save_png(figure, out, name))


def _show_predictions(checkpoint: Checkpoint, predictions: Predictions, out: Path) -> dict[str, Any]:
    """Return the content of the page that needs images with known classes."""
    labels, given = distinguish_labels(checkpoint.labels), predictions.predicted
    attended, mistakes = show_attention(checkpoint, predictions), predictions.surest_mistakes()
    save_png(plot_confusion(predictions, labels), out, "confusion")
    save_png(plot_rollout(attended), out, "attention-rollout")
    if mistakes:
        save_png(plot_mistakes(predictions, labels, mistakes), out, "the-surest-mistakes")
    few = len(labels) <= MATRIX_CLASSES
    found, more = rank_confusions(predictions.targets, [given], checkpoint.labels)
    return {
        "images": len(predictions.targets),
        "labels": labels,
        "short": are_short(labels),
        "matrix": confusion_matrix(predictions.targets, given, len(labels)) if few else None,
        "pairs": found,
        "more": more,
        "attended": [
            (jpeg_uri(enlarge(each.pixels)), jpeg_uri(enlarge(each.lit)), each.label, each.right)
            for each in attended
        ],
        "wrong": len(predictions.targets) - predictions.right,
        "mistakes": [
            (
                jpeg_uri(enlarge(pixels)),
                labels[given[index]],
                float(predictions.probabilities[index].max()),
                labels[predictions.targets[index]],
            )
            for index, pixels in zip(mistakes, predictions.pixels(mistakes), strict=True)
        ],
    }


def _describe_data(recipe: Mapping[str, Any]) -> str:
    if "imported" in recipe:
        return f"weights imported from {recipe['imported']}, whose training is not known here"
    return f"trained on {public_name(recipe['data'])}" if "data" in recipe else "its training is not recorded"


def _facts(checkpoint: Checkpoint, images: Images | None, predictions: Predictions | None) -> dict[str, str]:
    config, recipe = checkpoint.model.config, checkpoint.recipe
    height, width = config.image_size
    facts = {
        "model": f"width {config.width}, depth {config.depth}, {config.heads} heads, patches of "
        f"{config.patch_size} \N{MULTIPLICATION SIGN} {config.patch_size} pixels, images of {width} "
        f"\N{MULTIPLICATION SIGN} {height} pixels, {config.classes} classes",
        "training": _describe_epochs(checkpoint),
        "test accuracy": describe_test(recipe),
    }
    if images is not None and predictions is not None:
        total = len(predictions.targets)
        of = f"{format_count(total, 'image')} of {public_name(images.name)}"
        facts["on these images"] = f"{100 * predictions.right / total:.2f} % of {of} right"
        if unread := len(images) - total:
            facts["on these images"] += f"; {format_count(unread, 'image')} could not be read"
    else:
        facts["on other images"] = "not measured, no images were given (--data)"
    return facts


def _describe_epoch(checkpoint: Checkpoint) -> str | None:
    """Say which epoch's weights these are; None where no epochs are recorded."""
    if not checkpoint.history:
        return None
    return describe_kept(checkpoint.history, checkpoint.recipe.get("images", {}).get("val"))


def _next_command(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.parent if checkpoint.path.name == FILE_NAME else checkpoint.path
    return f"python -m export {quote(public_name(str(path)))} --quantize --calibration IMAGES"


def _describe_epochs(checkpoint: Checkpoint) -> str:
    done, planned = len(checkpoint.history), checkpoint.recipe.get("recipe", {}).get("epochs")
    if not done:
        return "no epochs are recorded"
    epochs = format_count(done, "epoch")
    if checkpoint.finished:
        return epochs
    return f"not finished: the best of {epochs} so far" + (f", {planned} are planned" if planned else "")
