"""Token merging in torch: the graph's arithmetic, the same weights, and a schedule that fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from calibration.token_merging.merge_schedule import list_middle_blocks
from calibration.token_merging.write_merging import write_merging as merged_graph
from export.sources.from_torch import export_float_graph
from runtime.session import open_session
from vit.config import ConfigError, ViTConfig, merge_schedule
from vit.model import ViT
from vit.token_merging import merge_patches, set_merging

CONFIG = ViTConfig(
    image_size=(40, 48), patch_size=8, width=32, depth=4, heads=4, mlp_width=64, classes=10, layer_scale=True
)


@pytest.fixture(scope="module")
def model() -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(CONFIG).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def graph(model: ViT) -> ir.Model:
    return export_float_graph(model).model


@pytest.mark.parametrize("schedule", [{1: 4}, {0: 15, 1: 7, 2: 2}, {1: 5, 2: 5}, {}])
def test_torch_and_graph_are_equal(schedule, model, graph) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, *CONFIG.image_size, 3), np.uint8)
    written = merged_graph(graph, {f"blocks.{index}": merged for index, merged in schedule.items()})
    session = open_session(ir.to_proto(written).SerializeToString(), device="cpu", threads=1)
    (expected,) = session.run(None, {"pixels": pixels})
    try:
        with torch.inference_mode():
            found = set_merging(model, schedule)(torch.from_numpy(pixels)).numpy()
    finally:
        set_merging(model, {})
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    with torch.inference_mode():
        dense = model(torch.from_numpy(pixels)).numpy()
    assert (np.abs(found - dense).max() > 1e-3) == bool(schedule)


def test_the_weights_keep_their_names_and_get_gradients(model) -> None:
    names = list(model.state_dict())
    set_merging(model, {1: 6})
    try:
        assert list(model.state_dict()) == names
        model(torch.zeros(2, *CONFIG.image_size, 3, dtype=torch.uint8)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        set_merging(model, {})
        model.zero_grad()
    assert list(model.state_dict()) == names


def test_a_merged_token_is_the_mean_of_its_patches() -> None:
    """Four patches, two of them equal in key: by hand."""
    tokens = torch.tensor([[[9.0], [1.0], [4.0], [7.0], [2.0]]])  # the class token, then A, B, A, B
    size = torch.tensor([[[1.0], [1.0], [2.0], [1.0], [1.0]]])
    keys = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [-1.0, 0.5], [0.0, 1.0]]]).unsqueeze(1)
    merged, sizes = merge_patches(tokens, size, keys, 1)
    # Patch 1 (A) goes to patch 2 (B): (1 · 1 + 2 · 4) / 3; then the class token, A's rest, B.
    torch.testing.assert_close(merged, torch.tensor([[[9.0], [7.0], [3.0], [2.0]]]))
    torch.testing.assert_close(sizes, torch.tensor([[[1.0], [1.0], [3.0], [1.0]]]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 12, 24])
def test_torch_and_export_merge_in_the_same_blocks(depth) -> None:
    config = replace(CONFIG, depth=depth)
    names = [f"blocks.{index}" for index in range(depth)]
    expected = [names.index(name) for name in list_middle_blocks(names)]
    assert list(merge_schedule(config, 1) if depth > 1 else {}) == expected


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    assert merge_schedule(CONFIG, 10) == {1: 10, 2: 10}
    assert merge_schedule(CONFIG, 0) == {}
    with pytest.raises(ConfigError, match="expected 0 to 10 merged tokens per block for 30 patches"):
        merge_schedule(CONFIG, 11)


@pytest.mark.parametrize(
    "change", [{"registers": 2}, {"pooling": "mean"}, {"rotary": True}, {"attention_bias": True}]
)
def test_other_kinds_of_models_are_refused(change) -> None:
    with pytest.raises(ConfigError, match="leave --merge-tokens out for this model"):
        merge_schedule(replace(CONFIG, **change), 2)
    assert merge_schedule(replace(CONFIG, **change), 0) == {}
