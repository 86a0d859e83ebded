"""The page of plots: in the style of the report, whole, and honest about what it does not show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tools.html_page import Page
from vit.checkpoint import load_checkpoint, result_of_test, save_checkpoint
from vit.data.images import open_images
from vit.model import ViT

pytest.importorskip("matplotlib")
from vit.inspect.page import write_plots
from vit.inspect.plots import plot_positions

LABELS = ["blue sky", "grass", "rose"]
HISTORY = [{"epoch": n, "train_loss": 1 / n, "train_accuracy": n / 3, "val_loss": 1.0} for n in (1, 2, 3)]


@pytest.fixture
def plots(tiny_model, tiny_preprocess, tmp_path: Path):
    """Write a run and its plots; return the page."""

    def written(images=None, *, finished=True, **run) -> Page:
        folder = tmp_path / "flowers"
        folder.mkdir(exist_ok=True)
        save_checkpoint(
            folder, model=tiny_model, preprocess=tiny_preprocess, labels=LABELS, finished=finished, **run
        )
        path = write_plots(load_checkpoint(folder), images, tmp_path / "plots")
        return Page(path.read_text(encoding="utf-8"))

    return written


def test_each_plot_says_what_to_look_for(plots, photos: Path, tmp_path: Path) -> None:
    recipe = {"data": str(photos / "train"), "test_accuracy": 0.875, "test_images": 40}
    page = plots(open_images(photos, "all"), history=HISTORY, recipe=recipe)
    assert page.flaws() == []
    shown = re.split("|".join(re.escape(words) for _, words in page.headings[1:]), page.text)
    titles = [words for level, words in page.headings if level == 2]
    for title, text in zip(titles[:-1], shown[1:-1], strict=True):
        assert re.search("[Ll]ook for", text), title
    assert titles[-1] == "Words on this page"
    assert "test accuracy 87.50 % of 40 images right" in page.text
    assert str(tmp_path) not in page.html
    assert "image attention labeled" in page.text
    assert "grass" in page.text


def test_a_run_without_images_says_so_everywhere(plots) -> None:
    page = plots(history=HISTORY[:1])
    assert page.flaws() == []
    for words in (
        "test accuracy not measured, there were no test images with known classes",
        "on other images not measured, no images were given (--data)",
        "Not drawn: curves need two epochs or more.",
        "Confusion, attention and mistakes Not drawn: no images were given.",
        "its training is not recorded",
    ):
        assert words in page.text
    assert "1 epoch " in page.text


def test_imported_weights_and_interrupted_runs_are_told(plots) -> None:
    page = plots(recipe={"imported": "timm", "source": "x"})
    assert "weights imported from timm, whose training is not known here" in page.text
    assert "test accuracy not measured, the weights were imported" in page.text
    assert "Not drawn: the weights were imported" in page.text
    page = plots(history=HISTORY, finished=False, recipe={"recipe": {"epochs": 9}})
    assert "not finished: the best of 3 epochs so far, 9 are planned" in page.text


def test_many_classes_show_pairs_in_the_place_of_a_matrix(
    tiny_config, tiny_preprocess, photos: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    labels = [*LABELS, *(f"other {index}" for index in range(20))]
    torch.manual_seed(0)
    model = ViT(replace(tiny_config, classes=len(labels))).eval()
    save_checkpoint(tmp_path, model=model, preprocess=tiny_preprocess, labels=labels)
    images = replace(open_images(photos, "all"), labels=tuple(labels))
    page = Page(
        write_plots(load_checkpoint(tmp_path), images, tmp_path / "plots").read_text(encoding="utf-8")
    )
    assert "true class → label given images" in page.text
    assert 'class="matrix' not in page.html


def test_positions_without_a_class_token_are_all_drawn(tiny_config) -> None:
    from dataclasses import replace

    model = ViT(replace(tiny_config, class_token=False, pooling="mean"))
    assert len(plot_positions(model).axes) == 4  # of 2 by 2 patches


def test_test_figures_are_told_in_the_same_words() -> None:
    assert result_of_test({"test_accuracy": 0.5, "test_images": 10}) == "50.00 % of 10 images right"
    assert result_of_test({"test_accuracy": 0.5}) == "50.00 % right"
    assert result_of_test({}).startswith("not measured, ")
