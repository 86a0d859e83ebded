"""The page of plots: in the style of the report, whole, and honest about what it does not show."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.html_page import Page
from vit.checkpoint import describe_test, load_checkpoint, save_checkpoint
from vit.data.datasets import Images, match_image_labels, open_images
from vit.model import ViT

pytest.importorskip("matplotlib")
from matplotlib.text import Text

from vit.inspect.page import write_plots
from vit.inspect.plots import plot_confusion, plot_curve, plot_mistakes, plot_positions, plot_rollout
from vit.inspect.predictions import attention_maps, predict_labels, show_attention
from vit.training.evaluate import describe_kept

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


ODD = ["$5^ to $10_", "日本語\n🙂", "x" * 90]


def test_names_of_any_kind_are_drawn_as_they_are(tiny_model, tiny_preprocess, photos, tmp_path) -> None:
    """Dollars are no formulas, long names are cut, and letters that the font lacks are no warnings."""
    save_checkpoint(tmp_path, model=tiny_model, preprocess=tiny_preprocess, labels=ODD)
    images = replace(open_images(photos, "all"), labels=tuple(ODD))
    found = load_checkpoint(tmp_path)
    write_plots(found, images, tmp_path / "plots")
    predictions = predict_labels(found, images)
    figures = [plot_confusion(predictions, ODD), plot_rollout(show_attention(found, predictions))]
    figures += [plot_mistakes(predictions, ODD, predictions.surest_mistakes())]
    texts = [text for figure in figures for text in figure.findobj(Text) if text.get_text()]
    named = [text for text in texts if re.search("[$日x]{2}|\\$", text.get_text())]
    assert len(named) >= 9
    for text in named:
        assert not text.get_parse_math()
        assert max(len(line) for line in text.get_text().splitlines()) <= 30


def test_only_what_is_shown_is_kept_and_attended_one_at_a_time(
    tiny_model, tiny_preprocess, photos, tmp_path, monkeypatch
) -> None:
    (photos / "test" / "grass" / "0.png").write_bytes(b"")
    save_checkpoint(tmp_path, model=tiny_model, preprocess=tiny_preprocess, labels=LABELS)
    found, images = load_checkpoint(tmp_path), open_images(photos, "all")
    monkeypatch.setattr("vit.inspect.predictions.BAD", 0.5)
    predictions, seen = predict_labels(found, images), []
    assert predictions.probabilities.nbytes + predictions.places.nbytes < len(images) * 8 * 8 * 3
    view = tiny_preprocess(images[int(predictions.places[40])])
    assert len(predictions.targets) == len(images) - 1
    assert (predictions.pixels([40])[0] == view).all()

    def maps(model, pixels):
        seen.append(len(pixels))
        return attention_maps(model, pixels)

    monkeypatch.setattr("vit.inspect.predictions.attention_maps", maps)
    assert len(show_attention(found, predictions)) == 3
    assert seen == [1, 1, 1]
    page = write_plots(found, images, tmp_path / "plots").read_text(encoding="utf-8")
    assert "right; 1 image could not be read" in page


def test_epochs_are_whole_numbers() -> None:
    axes = plot_curve(HISTORY[:2], "loss").axes[0]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_positions_without_a_class_token_are_all_drawn(tiny_config) -> None:
    model = ViT(replace(tiny_config, class_token=False, pooling="mean"))
    assert len(plot_positions(model).axes) == 4  # of 2 by 2 patches


def test_test_figures_are_told_in_the_same_words() -> None:
    assert describe_test({"test_accuracy": 0.5, "test_images": 10}) == "50.00 % of 10 images right"
    assert describe_test({"test_accuracy": 0.5}) == "50.00 % right"
    assert describe_test({}).startswith("not measured, ")


def test_what_was_kept_is_marked_and_told(plots) -> None:
    values = {1: (0.5, 1.0), 2: (0.9, 0.8), 3: (0.9, 0.9)}
    history = [
        row | {"val_accuracy": accuracy, "val_loss": loss}
        for row, (accuracy, loss) in zip(HISTORY, values.values(), strict=True)
    ]
    for kind in ("loss", "accuracy"):
        axes = plot_curve(history, kind).axes[0]
        assert "kept: epoch 2" in [text.get_text() for text in axes.get_legend().get_texts()]
        assert 2 in [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    page = plots(history=history, recipe={"images": {"train": 300, "val": 153}})
    told = "epoch 2 of 3: 90.00 % of 153 validation images right; the same images chose it"
    assert f"Kept {told}" in page.text
    assert "flowers --quantize --calibration IMAGES" in page.text
    assert describe_kept(history, 153).startswith(f"kept {told}")
    assert describe_kept(HISTORY, None).startswith(
        "kept epoch 3 of 3, the last: there were no validation images"
    )
    assert "Kept epoch 3 of 3, the last" in plots(history=HISTORY).text


def test_either_of_two_classes_of_one_name_is_right(tiny_model, tiny_preprocess, photos, tmp_path) -> None:
    save_checkpoint(tmp_path, model=tiny_model, preprocess=tiny_preprocess, labels=["rose", "grass", "rose"])
    found = load_checkpoint(tmp_path)
    items = open_images(photos, "all").items
    answers = predict_labels(found, Images(items, np.zeros(len(items), np.int64), LABELS, "x")).predicted
    assert len(set(answers.tolist()) & {0, 2}) > 0
    kept = [items[i] for i in np.flatnonzero(answers != 1)]
    named = Images(kept, np.zeros(len(kept), np.int64), ("rose",), "photos")
    predictions = predict_labels(found, match_image_labels(named, found.labels))
    assert predictions.right == len(kept)
    assert predictions.surest_mistakes() == []
