"""`python -m vit train --merge-tokens R`: the whole model learns with merging on."""

from __future__ import annotations

from vit.__main__ import main
from vit.checkpoint import load_checkpoint
from vit.model import ViT
from vit.token_merging import MergingBlocks
from vit.training.recipe import Recipe
from vit.training.strategies import strategy_for


def test_the_command_trains_with_merging_and_tells_both_accuracies(photos, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--data", str(photos), "--out", str(out), "--image-size", "16", "--patch-size", "4"]
    arguments += [
        "--epochs",
        "1",
        "--batch",
        "8",
        "--merge-tokens",
        "2",
        "--set",
        "ema=0",
        "--set",
        "holdout=0",
    ]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert '"merge_tokens": 2' in told
    assert "images right" in told
    assert "test without merging: " in told
    checkpoint = load_checkpoint(out)
    assert checkpoint.recipe["recipe"]["merge_tokens"] == 2
    assert 0 <= checkpoint.recipe["test_accuracy_without_merging"] <= 1
    assert type(checkpoint.model.blocks) is not MergingBlocks  # the file is a plain model's


def test_too_many_tokens_and_a_probe_are_refused(photos, tmp_path, capsys) -> None:
    common = ["train", "--data", str(photos), "--out", str(tmp_path / "run"), "--image-size", "16"]
    common += ["--patch-size", "4"]
    assert main([*common, "--merge-tokens", "9"]) == 2
    assert "expected 0 to 2 merged tokens per block for 16 patches and 6 blocks" in capsys.readouterr().err
    assert main([*common, "--merge-tokens", "1", "--preset", "probe", "--from", "x"]) == 2
    assert "leave --merge-tokens out" in capsys.readouterr().err
    assert main([*common, "--set", "merge_tokens=-1"]) == 2
    assert "merge_tokens must be at least 0" in capsys.readouterr().err


def test_without_it_the_model_is_the_plain_one(tiny_config, tiny_preprocess, tmp_path) -> None:
    model = ViT(tiny_config)
    blocks = model.blocks
    strategy = strategy_for(Recipe(), model, tiny_preprocess, tmp_path)
    assert strategy.judge(model) is model
    assert model.blocks is blocks
    merging = strategy_for(Recipe(merge_tokens=2), model, tiny_preprocess, tmp_path)
    assert isinstance(merging.judge(model).blocks, MergingBlocks)
