"""Plots of a run as PNG files and one HTML page, in the style of the export's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from matplotlib.figure import Figure

from runtime.text import format_count
from runtime.writing import write_atomically
from vit.checkpoint import Checkpoint, result_of_test
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
from vit.inspect.predictions import Verdicts, attend, judge
from vit.page.confusion import MATRIX_CLASSES, are_short, confused_pairs, confusion_matrix, distinct
from vit.page.image_uri import enlarged, file_uri, jpeg_uri
from vit.page.template import render_page
from vit.training.evaluate import describe_kept

PAGE = "index.html"


def write_plots(checkpoint: Checkpoint, images: Images | None, out: Path) -> Path:
    """Write every plot that can be made into `out` as PNG, and all of them into `index.html` there.

    Args:
        checkpoint: the run.
        images: images with known classes; None leaves out confusion, attention and mistakes, and says so.
        out: the folder.
    """
    history = checkpoint.history
    curves = {kind: plot_curve(history, kind) for kind in ("loss", "accuracy")} if len(history) > 1 else {}
    verdicts = None if images is None else judge(checkpoint, images)
    page = render_page(
        "vit.inspect",
        "plots.html.j2",
        name=checkpoint.name,
        trained_on=_trained_on(checkpoint.recipe),
        facts=_facts(checkpoint, images, verdicts),
        curves=[(kind, _saved(figure, out, kind)) for kind, figure in curves.items()],
        validated=any("val_loss" in row for row in history),
        imported="imported" in checkpoint.recipe,
        kept=_kept(checkpoint),
        command=_next_command(checkpoint),
        filters=_saved(plot_filters(checkpoint.model), out, "patch-embedding-filters"),
        positions=_saved(plot_positions(checkpoint.model), out, "position-embedding-similarity"),
        judged=None if verdicts is None else _judged(checkpoint, verdicts, out),
        digest=checkpoint.digest,
    )
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def _saved(figure: Figure, out: Path, name: str) -> str:
    return file_uri(save_png(figure, out, name))


def _judged(checkpoint: Checkpoint, verdicts: Verdicts, out: Path) -> dict[str, Any]:
    """Everything that needs images with known classes."""
    labels, given = distinct(checkpoint.labels), verdicts.predicted
    attended, mistakes = attend(checkpoint, verdicts), verdicts.surest_mistakes()
    save_png(plot_confusion(verdicts, labels), out, "confusion")
    save_png(plot_rollout(attended), out, "attention-rollout")
    if mistakes:
        save_png(plot_mistakes(verdicts, labels, mistakes), out, "the-surest-mistakes")
    few = len(labels) <= MATRIX_CLASSES
    found, more = confused_pairs(verdicts.targets, [given], checkpoint.labels)
    return {
        "images": len(verdicts.targets),
        "labels": labels,
        "short": are_short(labels),
        "matrix": confusion_matrix(verdicts.targets, given, len(labels)) if few else None,
        "pairs": found,
        "more": more,
        "attended": [
            (jpeg_uri(enlarged(each.pixels)), jpeg_uri(enlarged(each.lit)), each.label, each.right)
            for each in attended
        ],
        "wrong": len(verdicts.targets) - verdicts.right,
        "mistakes": [
            (
                jpeg_uri(enlarged(pixels)),
                labels[given[index]],
                float(verdicts.probabilities[index].max()),
                labels[verdicts.targets[index]],
            )
            for index, pixels in zip(mistakes, verdicts.pixels(mistakes), strict=True)
        ],
    }


def _trained_on(recipe: Mapping[str, Any]) -> str:
    if "imported" in recipe:
        return f"weights imported from {recipe['imported']}, whose training is not known here"
    return f"trained on {public_name(recipe['data'])}" if "data" in recipe else "its training is not recorded"


def _facts(checkpoint: Checkpoint, images: Images | None, verdicts: Verdicts | None) -> dict[str, str]:
    config, recipe = checkpoint.model.config, checkpoint.recipe
    height, width = config.image_size
    facts = {
        "model": f"width {config.width}, depth {config.depth}, {config.heads} heads, patches of "
        f"{config.patch_size} \N{MULTIPLICATION SIGN} {config.patch_size} pixels, images of {width} "
        f"\N{MULTIPLICATION SIGN} {height} pixels, {config.classes} classes",
        "training": _epochs(checkpoint),
        "test accuracy": result_of_test(recipe),
    }
    if images is not None and verdicts is not None:
        total = len(verdicts.targets)
        of = f"{format_count(total, 'image')} of {public_name(images.name)}"
        facts["on these images"] = f"{100 * verdicts.right / total:.2f} % of {of} right"
        if unread := len(images) - total:
            facts["on these images"] += f"; {format_count(unread, 'image')} could not be read"
    else:
        facts["on other images"] = "not measured, no images were given (--data)"
    return facts


def _kept(checkpoint: Checkpoint) -> str | None:
    """Say which epoch's weights these are; None where no epochs are recorded."""
    if not checkpoint.history:
        return None
    return describe_kept(checkpoint.history, checkpoint.recipe.get("images", {}).get("val"))


def _next_command(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.parent if checkpoint.path.name == FILE_NAME else checkpoint.path
    return f"python -m export {quote(public_name(str(path)))} --quantize --calibration IMAGES"


def _epochs(checkpoint: Checkpoint) -> str:
    done, planned = len(checkpoint.history), checkpoint.recipe.get("recipe", {}).get("epochs")
    if not done:
        return "no epochs are recorded"
    epochs = f"{done} epoch" + ("" if done == 1 else "s")
    if checkpoint.finished:
        return epochs
    return f"not finished: the best of {epochs} so far" + (f", {planned} are planned" if planned else "")
