"""Summary, attention and plots."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vit.__main__ import main
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.config import SIZES
from vit.inspect.predictions import attention_maps, rollout
from vit.inspect.summary import summarize_model
from vit.model import ViT, split_heads


@pytest.mark.parametrize("changes", [{}, {"representation": 5}, {"layer_scale": True}, {"classes": 0}])
def test_summary_counts_every_parameter(tiny_config, changes):
    config = replace(tiny_config, **changes)
    assert sum(row.parameters for row in summarize_model(config)) == sum(
        p.numel() for p in ViT(config).parameters()
    )


OPTIONS = [
    dict(registers=2, pooling="class_and_last", rotary=True, gated=True, activation="silu"),
    dict(class_token=False, pooling="attention", attention_bias=True),
    dict(pooling="class_and_mean", pre_norm=True, final_norm="none", representation=5),
    dict(pooling="mean", final_norm="after", qk_norm=True, registers=1),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_summary_counts_the_parameters_of_each_option(options, tiny_config):
    config = replace(tiny_config, **options)
    counted = sum(row.parameters for row in summarize_model(config))
    assert counted == sum(p.numel() for p in ViT(config).parameters())


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_of_each_option_flows_from_patches(options, tiny_config):
    model = ViT(replace(tiny_config, **options)).eval()
    maps, logits = attention_maps(model, torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert logits.shape == (2, 3)
    assert rollout(maps, model.config).shape == (2, 4)


def test_summary_counts_the_published_multiply_adds():
    # DeiT's table 5 and timm's: 4.6 and 17.6 GMACs; 1.3 for Tiny
    for size, gmacs in (("tiny", 1.26), ("small", 4.61), ("base", 17.58)):
        assert sum(row.macs for row in summarize_model(SIZES[size])) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_attention_maps_are_those_of_the_forward_pass(tiny_model):
    pixels = torch.randint(
        0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    maps, logits = attention_maps(tiny_model, pixels)
    assert maps.shape == (2, 2, 2, 5, 5)
    with torch.no_grad():
        assert torch.equal(logits, tiny_model(pixels))
        block, tokens = tiny_model.blocks[0], None
        patches = tiny_model.patch_embedding(tiny_model.normalize(pixels))
        tokens = torch.cat([tiny_model.class_token.expand(2, -1, -1), patches], 1) + tiny_model.position
        y = block.norm1(tokens)
        value = split_heads(block.attention.value(y), 2)
        mixed = block.attention.proj((maps[0] @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(mixed, block.attention(y))
    assert not any(block.attention._forward_pre_hooks for block in tiny_model.blocks)


def test_rollout_follows_the_attention():
    """Where every token listens to patch 2 alone, what arrives comes from patch 2."""
    maps = torch.zeros(3, 1, 2, 5, 5)
    maps[..., 3] = 1.0
    flow = rollout(maps)
    torch.testing.assert_close(flow, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    even = rollout(torch.full((3, 1, 2, 5, 5), 0.2))
    torch.testing.assert_close(even, torch.full((1, 4), 0.25))


def test_summary_and_plots_from_the_command_line(photos, tiny_model, tiny_preprocess, tmp_path, capsys):
    labels = ["blue sky", "grass", "rose"]
    history = [{"epoch": n, "train_loss": 1 / n, "train_accuracy": n / 3, "val_loss": 1.0} for n in (1, 2, 3)]
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run, model=tiny_model, preprocess=tiny_preprocess, labels=labels, history=history)
    assert main(["summary", str(run)]) == 0
    assert "patch_embedding" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert main(["plots", str(run), "--data", str(photos)]) == 0
    page = run / "plots" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    names = {path.stem for path in (run / "plots").glob("*.png")}
    expected = {"loss", "accuracy", "patch-embedding-filters", "position-embedding-similarity"}
    assert names == expected | {"confusion", "attention-rollout", "the-surest-mistakes"}
    for path in (run / "plots").glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 1, f"{path.name} is blank"
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 4  # the rest is drawn in the page itself
    assert load_checkpoint(run).digest in text
    assert main(["plots", str(run), "--data", "digits"]) == 2
    assert "is not one of the model's 3 labels" in capsys.readouterr().err
    loose = next(photos.glob("*/*/*"))
    assert main(["plots", str(run), "--data", str(loose)]) == 2
    assert "found images without classes" in capsys.readouterr().err
    headless = ViT(replace(tiny_model.config, classes=0))
    path = save_checkpoint(
        tmp_path / "headless.safetensors", model=headless, preprocess=tiny_preprocess, labels=[]
    )
    assert main(["plots", str(path), "--data", str(photos)]) == 2
    assert "the model has no classes" in capsys.readouterr().err
