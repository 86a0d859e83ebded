"""`python -m vit train --merge-tokens R`: the whole model learns with merging on."""

from __future__ import annotations

import torch
from torch import nn

from vit.__main__ import main
from vit.checkpoint import load_checkpoint
from vit.data.training_images import open_data
from vit.model import new_model
from vit.token_merging import MergingBlocks
from vit.training.distributed import World
from vit.training.recipe import Recipe
from vit.training.session import LoopSession


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


def test_without_it_the_model_is_the_plain_one(photos, tiny_config, tiny_preprocess, tmp_path) -> None:
    def blocks_of(recipe: Recipe) -> object:
        model, data = new_model(tiny_config, 0), open_data(photos, holdout=0.0)
        session = LoopSession(recipe, model, data, tiny_preprocess, tmp_path, print, {})
        return session.make_loop(torch.device("cpu"), World(), None).module.blocks

    assert type(blocks_of(Recipe())) is nn.Sequential
    assert isinstance(blocks_of(Recipe(merge_tokens=1)), MergingBlocks)
