"""The model against the paper: equations 1 to 4 and 5 to 8 by hand, and the sizes of Table 1."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vit.adapt import resize_model
from vit.config import SIZES, ConfigError, ViTConfig, make_config
from vit.model import ViT
from vit.token_merging import attend_merged, set_merging


@pytest.mark.parametrize(
    ("size", "parameters"),
    [  # the published counts at 1000 classes and 224 pixels: DeiT for the first two, torchvision for the rest
        ("tiny", 5_717_416),
        ("small", 22_050_664),
        ("base", 86_567_656),
        ("large", 304_326_632),
        ("huge", 632_045_800),
    ],
)
def test_sizes_have_the_published_number_of_parameters(size, parameters):
    with torch.device("meta"):
        model = ViT(make_config(size))
    assert sum(p.numel() for p in model.parameters()) == parameters


def by_hand(model: ViT, pixels: torch.Tensor) -> torch.Tensor:
    """Equations 1 to 8 of the paper, a patch and a head at a time."""
    config, w = model.config, model.state_dict()
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    images = (pixels.float() / 255 - mean) / std
    p, d = config.patch_size, config.width // config.heads
    rows = []
    for image in images:
        patches = [
            image[r * p : (r + 1) * p, c * p : (c + 1) * p].permute(2, 0, 1).flatten()
            for r in range(config.grid[0])
            for c in range(config.grid[1])
        ]
        embedding = w["patch_embedding.weight"].flatten(1)
        z = torch.stack(patches) @ embedding.T + w["patch_embedding.bias"]
        z = torch.cat([w["class_token"][0], z]) + w["position"][0]  # equation 1
        for i in range(config.depth):

            def linear(x, name, i=i):
                return x @ w[f"blocks.{i}.{name}.weight"].T + w[f"blocks.{i}.{name}.bias"]

            def norm(x, name, i=i):
                x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
                return x * w[f"blocks.{i}.{name}.weight"] + w[f"blocks.{i}.{name}.bias"]

            x = norm(z, "norm1")
            q, k, v = (linear(x, f"attention.{name}") for name in ("query", "key", "value"))
            heads = []
            for h in range(config.heads):
                part = slice(h * d, (h + 1) * d)
                weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(d), -1)  # equation 6
                heads.append(weights @ v[:, part])  # equation 7
            z = z + linear(torch.cat(heads, -1), "attention.proj")  # equations 8 and 2
            z = z + linear(F.gelu(linear(norm(z, "norm2"), "mlp.fc1")), "mlp.fc2")  # equation 3
        y = (z[0] - z[0].mean()) / (z[0].var(unbiased=False) + 1e-6).sqrt()
        y = y * w["norm.weight"] + w["norm.bias"]  # equation 4
        rows.append(w["head.weight"] @ y + w["head.bias"])
    return torch.stack(rows)


def test_forward_is_the_papers_equations(tiny_model):
    pixels = torch.randint(
        0, 256, (3, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(pixels), by_hand(tiny_model, pixels), rtol=1e-5, atol=1e-5)


def test_dropout_stands_where_the_paper_has_it(tiny_config):
    """After each linear layer but query, key and value, and after the positions (appendix B.1)."""
    model = ViT(replace(tiny_config, dropout=0.5))
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    block, tokens = model.blocks[0], torch.randn(2, 5, 16)
    sizes = torch.ones(2, 5, 1)
    places = {
        "positions": lambda: model.embed(pixels),
        "attention": lambda: block.attention(tokens),
        "merging attention": lambda: attend_merged(block.attention, tokens, sizes)[0],
        "mlp": lambda: block.mlp(tokens),
        "block": lambda: block(tokens),
    }
    random = {}
    for name, run in places.items():
        first = run()
        random[name] = any(not torch.equal(first, run()) for _ in range(5))
    plain = {"attention", "merging attention"}
    assert random == {name: name not in plain for name in places}
    model.eval()
    assert all(torch.equal(run(), run()) for run in places.values())


def test_float_pixels_are_taken_as_they_are(tiny_model):
    pixels = torch.randint(
        0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        assert torch.equal(tiny_model(pixels), tiny_model(pixels.float()))


def test_without_a_head_the_features_come_out(tiny_config):
    model = ViT(replace(tiny_config, classes=0)).eval()
    pixels = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(pixels), model.features(pixels))
        assert model(pixels).shape == (2, 16)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patch_size": 5}, "multiple of patch_size"),
        ({"image_size": (32, 9), "patch_size": 16}, "image_size 32x9 .* 16; take 32x16$"),
        ({"heads": 3}, "multiple of heads"),
        ({"classes": -1}, "classes"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"depth": 0}, "depth"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_impossible_configurations_are_refused(tiny_config, changes, word):
    with pytest.raises(ConfigError, match=word):
        replace(tiny_config, **changes)


def test_config_survives_json(tiny_config):
    import json

    assert ViTConfig.from_dict(json.loads(json.dumps(tiny_config.to_dict()))) == tiny_config
    with pytest.raises(ConfigError, match="widht"):
        ViTConfig.from_dict({"widht": 3})
    with pytest.raises(ConfigError, match="unknown size"):
        make_config("gigantic")
    assert set(SIZES) == {"tiny", "small", "base", "large", "huge"}


@pytest.mark.parametrize(
    "options",
    [{"registers": 1}, {"rotary": True}, {"class_token": False, "pooling": "mean"}, {"qk_norm": True}],
)
def test_merging_is_refused_where_it_would_change_the_model(options, tiny_config):
    with pytest.raises(ConfigError, match="tokens merge"):
        set_merging(ViT(replace(tiny_config, **options)), {0: 1})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"class_token": False}, "needs a class token"),
        ({"pooling": "class_and_last"}, "no registers"),
        ({"pooling": "max"}, "pooling must be one of"),
        ({"final_norm": "twice"}, "final_norm"),
        ({"registers": -1}, "registers"),
    ],
)
def test_impossible_options_are_refused(tiny_config, changes, word):
    with pytest.raises(ConfigError, match=word):
        replace(tiny_config, **changes)


@pytest.mark.parametrize("options", [{"rotary": True}, {"attention_bias": True}])
def test_positions_inside_the_attention_keep_their_size(options, tiny_config):
    with pytest.raises(ConfigError, match="made for 8x8"):
        resize_model(ViT(replace(tiny_config, **options)), (16, 16))
