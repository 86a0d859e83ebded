"""Plots of a run as figures: curves, filters, positions, confusion, attention and mistakes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit.inspect.predictions import Attended, Predictions
from vit.model import ViT
from vit.page.confusion import count_labels
from vit.training.evaluate import choose_epoch

COLUMNS = 8  # images in a row
LETTERS = 20  # of a name
CURVES = {"train": ("--", "training images"), "val": ("-", "validation images")}


def plot_curve(history: list[dict[str, Any]], kind: str) -> Figure:
    """Plot the "loss" or "accuracy" on training and validation images, one point per epoch."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for part, (style, label) in CURVES.items():
        if values := [row[f"{part}_{kind}"] for row in history if f"{part}_{kind}" in row]:
            axes.plot(range(1, len(values) + 1), values, style, label=label)
    kept = choose_epoch(history)
    axes.axvline(kept, color="0.4", linestyle=":", label=f"kept: epoch {kept}")
    axes.set(xlabel="epoch", ylabel=kind)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_filters(model: ViT) -> Figure:
    """Plot the first principal components of the patch embedding's filters."""
    filters = model.patch_embedding.weight.detach().flatten(1)  # (D, 3 P P)
    centered = filters - filters.mean(0)
    _, _, components = torch.linalg.svd(centered, full_matrices=False)
    count = min(28, len(components))
    size = model.config.patch_size
    tiles = components[:count].view(count, 3, size, size).permute(0, 2, 3, 1)
    low, high = tiles.amin((1, 2, 3), keepdim=True), tiles.amax((1, 2, 3), keepdim=True)
    return plot_tiles(list(((tiles - low) / (high - low)).numpy()), columns=7, size=1.0)


def plot_positions(model: ViT) -> Figure:
    """Plot the cosine similarity of position embeddings to all others, laid out as the patches are."""
    rows, columns = model.config.grid
    places = model.position.detach()[0, int(model.config.class_token) :]
    patches = torch.nn.functional.normalize(places, dim=-1)
    similarity = (patches @ patches.T).view(rows, columns, rows, columns)
    down = np.linspace(0, rows - 1, min(rows, 7)).round().astype(int)  # 49 tiles can still be seen
    across = np.linspace(0, columns - 1, min(columns, 7)).round().astype(int)
    tiles = [similarity[r, c].numpy() for r in down for c in across]
    return plot_tiles(tiles, columns=len(across), size=0.9, vmin=-1.0, vmax=1.0)


def plot_confusion(predictions: Predictions, labels: Sequence[str]) -> Figure:
    """Plot how often each class is taken for each other; rows are the true classes, in percent of them."""
    count = len(labels)
    table = count_labels(predictions.targets, predictions.predicted, count)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    size = min(3 + 0.45 * count, 14)
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 30:
        names = [_caption(label) for label in labels]
        axes.set_xticks(range(count), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        for row, column in np.argwhere(share >= 0.5):
            color = "white" if share[row, column] > 60 else "black"
            axes.text(
                column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8
            )
    return figure


def plot_rollout(attended: Sequence[Attended]) -> Figure:
    """Plot images of different classes, and below each the same image lit where the prediction attends to."""
    return plot_tiles(
        [*(each.pixels for each in attended), *(each.lit for each in attended)],
        columns=len(attended),
        size=1.5,
        titles=[_caption(each.label) for each in attended],
        rows=("image", "attention"),
    )


def plot_mistakes(predictions: Predictions, labels: Sequence[str], worst: Sequence[int]) -> Figure:
    """Plot the images of the indices `worst`, with the predicted label and the true one."""
    titles = [
        f"{_caption(labels[predictions.predicted[i]])} {100 * predictions.probabilities[i].max():.0f} %\n"
        f"is {_caption(labels[predictions.targets[i]])}"
        for i in worst
    ]
    tiles = list(predictions.pixels(worst))
    return plot_tiles(tiles, columns=min(COLUMNS, len(worst)), size=1.6, titles=titles)


def plot_tiles(
    tiles: list[np.ndarray],
    *,
    columns: int,
    size: float,
    titles: list[str] | None = None,
    rows: tuple[str, ...] = (),
    **style: Any,
) -> Figure:
    """Plot images in a grid, row by row.

    `size` is the edge of an image in inches, `titles` stand above the first images, the names of `rows` at
    their left; `style` has options of `imshow`.
    """
    count = -(-len(tiles) // columns)
    height = size + (0.45 if titles else 0.0)
    figure = Figure(figsize=(max(columns * size, 2), count * height), layout="constrained")
    grid = figure.subplots(count, columns, squeeze=False).flat
    for index, axes in enumerate(grid):
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if index < len(tiles):
            axes.imshow(tiles[index], **style)
        if titles and index < len(titles):
            axes.set_title(titles[index], fontsize=7, parse_math=False)
        if rows and index % columns == 0:
            axes.set_ylabel(rows[index // columns], fontsize=8)
    return figure


def _caption(label: str) -> str:
    """Return the name of a class on one line, cut to the width of a small image."""
    words = " ".join(label.split())
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1]}…"


def save_png(figure: Figure, out: Path, name: str) -> Path:
    """Write a figure as `NAME.png` into a folder, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    with warnings.catch_warnings():
        # The font lacks some scripts, such as Chinese; the page shows such names in the browser's fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(path, dpi=130)
    return path
