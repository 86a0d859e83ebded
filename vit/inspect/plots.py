"""Images of a run: curves, confusion, filters, positions, attention, mistakes; as PNG and one HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from runtime.writing import write_atomically
from vit.checkpoint import Checkpoint
from vit.data.batches import Store
from vit.data.images import Images
from vit.inspect.attention import attention_maps, rollout
from vit.model import ViT
from vit.training.loop import predict

SHOWN = 8  # images in a row


@dataclass(frozen=True)
class Verdicts:
    """Answers of a model for images whose classes are known."""

    pixels: np.ndarray  # uint8 [N, H, W, 3]
    targets: np.ndarray
    probabilities: np.ndarray  # float [N, classes]

    @property
    def predicted(self) -> np.ndarray:
        predicted: np.ndarray = self.probabilities.argmax(1)
        return predicted


def judge(checkpoint: Checkpoint, images: Images) -> Verdicts:
    """Run the model over `images`, which must have targets."""
    assert images.targets is not None
    store = Store(images, checkpoint.preprocess, bad_share=0.01)
    everything = np.arange(len(store))
    batches = [
        (pixels.softmax(1), good) for _, pixels, good in predict(checkpoint.model, store, everything, CPU)
    ]
    good = torch.cat([good for _, good in batches]).numpy()
    probabilities = torch.cat([share for share, _ in batches]).numpy()[good]
    pixels = store.batch(everything[good])[0].numpy()
    return Verdicts(pixels, images.targets[good], probabilities)


CPU = torch.device("cpu")


def write_plots(checkpoint: Checkpoint, images: Images | None, out: Path) -> Path:
    """Write every plot that can be made into `out` as PNG, and all of them into `index.html` there."""
    figures: dict[str, Figure] = {}
    if len(checkpoint.history) > 1:
        figures["Loss and accuracy"] = plot_curves(checkpoint.history)
    figures["Patch embedding filters (figure 7, left)"] = plot_filters(checkpoint.model)
    figures["Position embedding similarity (figure 7, center)"] = plot_positions(checkpoint.model)
    if images is not None:
        verdicts = judge(checkpoint, images)
        figures["Confusion"] = plot_confusion(verdicts, checkpoint.labels)
        figures["Attention rollout (figure 6)"] = plot_rollout(checkpoint, verdicts)
        figures["The surest mistakes"] = plot_mistakes(verdicts, checkpoint.labels)
    sections = [section(title, save_png(figure, out, title)) for title, figure in figures.items()]
    page = PAGE.format(
        name=html.escape(checkpoint.path.parent.name), facts=facts(checkpoint), body="\n".join(sections)
    )
    write_atomically(out / "index.html", page.encode())
    return out / "index.html"


def plot_curves(history: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, style in (("train", "--"), ("val", "-")):
            if values := [row[f"{part}_{kind}"] for row in history if f"{part}_{kind}" in row]:
                axes.plot(range(1, len(values) + 1), values, style, label=f"{part}")
        axes.set(xlabel="epoch", ylabel=kind)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_filters(model: ViT) -> Figure:
    """The first principal components of the patch embedding's filters."""
    filters = model.patch_embedding.weight.detach().flatten(1)  # (D, 3 P P)
    centered = filters - filters.mean(0)
    _, _, components = torch.linalg.svd(centered, full_matrices=False)
    count = min(28, len(components))
    size = model.config.patch_size
    tiles = components[:count].view(count, 3, size, size).permute(0, 2, 3, 1)
    low, high = tiles.amin((1, 2, 3), keepdim=True), tiles.amax((1, 2, 3), keepdim=True)
    return plot_tiles(list(((tiles - low) / (high - low)).numpy()), columns=7, size=1.0)


def plot_positions(model: ViT) -> Figure:
    """The cosine similarity of patches' position embeddings to all of them, laid out as the patches are."""
    rows, columns = model.config.grid
    patches = torch.nn.functional.normalize(model.position.detach()[0, 1:], dim=-1)
    similarity = (patches @ patches.T).view(rows, columns, rows, columns)
    down = np.linspace(0, rows - 1, min(rows, 7)).round().astype(int)  # 49 tiles can still be seen
    across = np.linspace(0, columns - 1, min(columns, 7)).round().astype(int)
    tiles = [similarity[r, c].numpy() for r in down for c in across]
    return plot_tiles(tiles, columns=len(across), size=0.9, vmin=-1.0, vmax=1.0)


def plot_confusion(verdicts: Verdicts, labels: tuple[str, ...]) -> Figure:
    """Which classes are taken for which: rows are the truth, in percent of it."""
    count = len(labels)
    table = np.zeros((count, count))
    np.add.at(table, (verdicts.targets, verdicts.predicted), 1)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    size = min(3 + 0.45 * count, 14)
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100), label="% of the true class", shrink=0.8
    )
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 30:
        axes.set_xticks(range(count), labels, rotation=45, ha="right")
        axes.set_yticks(range(count), labels)
        for row, column in np.argwhere(share >= 0.5):
            color = "white" if share[row, column] > 60 else "black"
            axes.text(
                column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8
            )
    return figure


def plot_rollout(checkpoint: Checkpoint, verdicts: Verdicts) -> Figure:
    """Images of different classes, and below each what its class token draws on."""
    first = [int(np.flatnonzero(verdicts.targets == target)[0]) for target in np.unique(verdicts.targets)][
        :SHOWN
    ]
    pixels = verdicts.pixels[first]
    maps, _ = attention_maps(checkpoint.model, torch.from_numpy(pixels))
    flow = rollout(maps, checkpoint.model.config).view(len(first), 1, *checkpoint.model.config.grid)
    masks = torch.nn.functional.interpolate(flow, pixels.shape[1:3], mode="bilinear")[:, 0].numpy()
    low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
    masks = (masks - low) / (high - low + 1e-12)  # every patch gets some: what counts is where it gets more
    lit = pixels / 255 * (0.15 + 0.85 * masks[..., None])
    names = [checkpoint.labels[verdicts.predicted[index]] for index in first]
    return plot_tiles([*pixels, *lit], columns=len(first), size=1.5, titles=names)


def plot_mistakes(verdicts: Verdicts, labels: tuple[str, ...]) -> Figure:
    """The images whose wrong class got the highest probability."""
    certainty = verdicts.probabilities.max(1)
    wrong = np.flatnonzero(verdicts.predicted != verdicts.targets)
    worst = wrong[np.argsort(-certainty[wrong], kind="stable")][: 3 * SHOWN]
    if not len(worst):
        figure = Figure(figsize=(4, 1))
        figure.text(0.05, 0.5, "No mistakes on these images.")
        return figure
    titles = [
        f"{labels[verdicts.predicted[i]]} {100 * certainty[i]:.0f} %\nis {labels[verdicts.targets[i]]}"
        for i in worst
    ]
    return plot_tiles(list(verdicts.pixels[worst]), columns=min(SHOWN, len(worst)), size=1.6, titles=titles)


def plot_tiles(
    tiles: list[np.ndarray], *, columns: int, size: float, titles: list[str] | None = None, **style: Any
) -> Figure:
    rows = -(-len(tiles) // columns)
    height = size + (0.45 if titles else 0.0)
    figure = Figure(figsize=(max(columns * size, 2), rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for index, axes in enumerate(grid):
        axes.axis("off")
        if index < len(tiles):
            axes.imshow(tiles[index], **style)
        if titles and index < len(titles):
            axes.set_title(titles[index], fontsize=7)
    return figure


def save_png(figure: Figure, out: Path, title: str) -> Path:
    name = title.partition(" (")[0].lower().replace(" ", "-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, dpi=110)
    return path


def section(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<h2>{html.escape(title)}</h2>\n<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
    )


def facts(checkpoint: Checkpoint) -> str:
    config = checkpoint.model.config
    known: Mapping[str, Any] = {
        "model": f"width {config.width}, depth {config.depth}, {config.heads} heads, "
        f"patch {config.patch_size}, {config.image_size[0]} x {config.image_size[1]} pixels",
        "trained on": checkpoint.recipe.get("data", "elsewhere"),
        "test accuracy": percent(checkpoint.recipe.get("test_accuracy")),
        "SHA-256": checkpoint.digest,
    }
    return "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in known.items())


def percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} dt {{ float: left; clear: left; width: 9rem; color: #666 }}
dd {{ margin-left: 9rem; overflow-wrap: anywhere }}
</style>
<h1>{name}</h1>
<dl>{facts}</dl>
{body}
</html>
"""
