"""The number of attention heads that trained weights show, against what is said or known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vit.pretrained.config import CLEAR, head_variance_ratios, infer_heads
from vit.pretrained.description import SourceError
from vit.pretrained.load import import_model

WIDTH, DEPTH = 192, 12  # a ViT-Ti, of which all known models have 3 heads


def weights(heads: int | None) -> dict[str, torch.Tensor]:
    """A ViT-Ti of timm whose heads have norms of their own, as training leaves them; None: untrained."""
    draw = torch.Generator().manual_seed(0)
    found = {
        "cls_token": torch.zeros(1, 1, WIDTH),
        "pos_embed": torch.zeros(1, 5, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, 8, 8, generator=draw),
        "patch_embed.proj.bias": torch.zeros(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
        "head.weight": torch.randn(3, WIDTH, generator=draw),
        "head.bias": torch.zeros(3),
    }
    for block in (f"blocks.{index}." for index in range(DEPTH)):
        scale = torch.ones(WIDTH, 1)
        if heads is not None:
            scale = (
                torch.randn(heads, generator=draw).mul(0.3).exp().repeat_interleave(WIDTH // heads)[:, None]
            )
        qkv = torch.randn(3, WIDTH, WIDTH, generator=draw) * scale
        layers = {
            "attn.qkv": qkv.flatten(0, 1),
            "attn.proj": (torch.randn(WIDTH, WIDTH, generator=draw) * scale).T,
        }
        layers |= {"mlp.fc1": torch.zeros(WIDTH, WIDTH), "mlp.fc2": torch.zeros(WIDTH, WIDTH)}
        for name, weight in layers.items():
            found[f"{block}{name}.weight"] = weight.contiguous()
            found[f"{block}{name}.bias"] = torch.zeros(len(weight))
        for norm in ("norm1", "norm2"):
            found |= {f"{block}{norm}.weight": torch.ones(WIDTH), f"{block}{norm}.bias": torch.zeros(WIDTH)}
    return found


def saved(folder: Path, heads: int | None, **config: object) -> Path:
    save_file(weights(heads), folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(heads: int | None) -> dict[str, torch.Tensor]:
    apart = {}
    for name, value in weights(heads).items():
        if name.endswith("qkv.weight"):
            apart[name.replace("attn.qkv", "attention.value")] = value[2 * WIDTH :]
        else:
            apart[name.replace(".attn.", ".attention.")] = value
    return apart


@pytest.mark.parametrize("heads", [2, 3, 4, 6, 12])
def test_weights_with_heads_of_their_own_norms_show_how_many(heads: int) -> None:
    assert infer_heads(ours(heads)) == heads


def test_untrained_weights_show_nothing() -> None:
    assert max(head_variance_ratios(ours(None)).values()) < CLEAR / 2
    assert infer_heads(ours(None)) is None
    assert infer_heads({}) is None


def test_a_known_size_whose_weights_show_other_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"have 3, and its weights look like 6; .*--heads 6 or --heads 3"):
        import_model(saved(tmp_path, 6))
    found = import_model(tmp_path, heads=6)
    assert found.model.config.heads == 6
    assert not any("WARNING" in note for note in found.notes)
    (warning,) = (note for note in import_model(tmp_path, heads=3).notes if "WARNING" in note)
    assert "3 attention heads were stated" in warning
    assert "--heads 6" in warning


def test_what_the_weights_show_is_part_of_the_note(tmp_path: Path) -> None:
    (said,) = (each for each in import_model(saved(tmp_path, 3)).assumed if "attention heads" in each)
    assert said.endswith("and as the weights look")
    (said,) = (each for each in import_model(saved(tmp_path, None)).assumed if "attention heads" in each)
    assert "wrong answers without an error" in said
    assert said.endswith("--heads N")


def test_a_description_that_the_weights_contradict_is_followed_with_a_warning(tmp_path: Path) -> None:
    found = import_model(saved(tmp_path, 4, num_heads=12))
    assert found.model.config.heads == 12
    assert any("WARNING: 12 attention heads" in note and "look like 4" in note for note in found.notes)


def test_an_unknown_size_is_refused_with_what_the_weights_show(tmp_path: Path) -> None:
    shorter = {name: value for name, value in weights(4).items() if not name.startswith("blocks.11.")}
    save_file(shorter, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"--heads N \(its weights look like 4 heads\)$"):
        import_model(tmp_path)
