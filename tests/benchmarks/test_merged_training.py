"""The benchmark of training with merged tokens judges the same weights with merging and without."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from benchmarks import merged_training
from runtime.images.preprocess import Preprocess
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.data.training_images import open_data
from vit.model import new_model
from vit.training.recipe import Recipe
from vit.training.train import train


def test_each_row_is_a_training_judged_twice(monkeypatch, capsys):
    config = replace(merged_training.CONFIG, patch_size=7, width=16, depth=4, mlp_width=32)
    monkeypatch.setattr(merged_training, "CONFIG", config)
    asked = []

    def spied(recipe, **options):
        asked.append((recipe.epochs, recipe.merge_tokens, options["teacher"] is not None))
        return train(recipe, **options)

    monkeypatch.setattr(merged_training, "train", spied)
    words = ["--data", "digits", "--more", "1", "--merge-tokens", "4"]
    assert merged_training.main([*words, "--epochs", "2"]) == 0
    assert asked == [(2, 0, False), (1, 0, True), (1, 4, True)]
    rows = _rows(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["dense", "trained on, dense", "trained on, merging"]
    figures = [[float(cell) for cell in row[1:]] for row in rows]
    assert all(10 < row[0] <= 100 and 10 < row[3] <= 100 for row in figures)
    assert figures[0][1] == 100  # the dense model gives its own labels
    assert all(plain != merged for _, _, plain, _, _, merged in figures)  # the losses: merging changes logits


def test_a_trained_checkpoint_is_trained_on_by_its_own_recipe(monkeypatch, capsys, tmp_path):
    data = open_data("digits", holdout=0.0)
    config = replace(merged_training.CONFIG, patch_size=7, width=16, depth=4, mlp_width=32)
    preprocess = Preprocess(size=config.image_size, resize="stretch", interpolation="bilinear")
    recipe = Recipe(name="mine", epochs=2, batch=100, lr=1e-3, holdout=0.0)
    train(recipe, model=new_model(config, 0), data=data, preprocess=preprocess, out=tmp_path, device="cpu")
    asked = []
    monkeypatch.setattr(
        merged_training, "train", lambda recipe, **rest: asked.append(recipe) or train(recipe, **rest)
    )
    words = ["--data", "digits", "--checkpoint", str(tmp_path), "--more", "1", "--merge-tokens", "4"]
    assert merged_training.main(words) == 0
    assert [(one.batch, one.lr, one.merge_tokens) for one in asked] == [(100, 2.5e-4, 0), (100, 2.5e-4, 4)]
    top1, same, *_ = _rows(capsys.readouterr().out)[0][1:]
    saved = load_checkpoint(tmp_path).recipe["test_accuracy"]
    assert (top1, same) == (f"{100 * saved:.2f}", "100.00")


def test_images_without_a_test_split_are_refused(capsys, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    assert merged_training.main(["--data", str(tmp_path)]) == 2
    assert "expected images with a test split, found none" in capsys.readouterr().err


def test_imported_weights_have_no_recipe_to_go_on_with(capsys, tmp_path):
    preprocess = Preprocess(size=(28, 28), resize="stretch", interpolation="bilinear")
    save_checkpoint(
        tmp_path / "model.safetensors",
        model=new_model(merged_training.CONFIG, 0),
        preprocess=preprocess,
        labels=[str(digit) for digit in range(10)],
        recipe={"imported": "a file"},
    )
    assert merged_training.main(["--data", "digits", "--checkpoint", str(tmp_path)]) == 2
    assert "expected a checkpoint of python -m vit train, found imported weights" in capsys.readouterr().err


def _rows(printed):
    lines = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in lines[2:]]
