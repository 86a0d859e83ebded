"""Every option of the model exports exactly, and to INT8."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calibration.quantize_model import quantize
from export.sources.from_torch import export_float_graph
from tests.support.small_models import configs, lively

# Together they use each option once; the families that have them are in benchmarks/families.py.
OPTIONS = {
    "two tokens, rotary, gated": dict(
        registers=2, pooling="class_and_last", rotary=True, gated=True, activation="silu"
    ),
    "attention pool": dict(class_token=False, pooling="attention", attention_bias=True),
    "class and mean": dict(pooling="class_and_mean", pre_norm=True, activation="quick_gelu"),
    "mean, normalized after": dict(pooling="mean", final_norm="after", qk_norm=True, registers=1),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_export_exactly(name, logits_of, pixels_for):
    config = replace(configs()["plain"], **OPTIONS[name])
    model = lively(config)
    for block in model.blocks:
        if config.rotary:
            angles = (
                torch.rand(block.attention.turn.shape[1:], generator=torch.Generator().manual_seed(1)) * 6
            )
            block.attention.turn.copy_(torch.stack([angles.cos(), angles.sin()]))
    pixels = pixels_for(config, 4)
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels)).numpy()
    exported = export_float_graph(model).model
    found = logits_of(exported, pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    rounded = logits_of(quantize(exported, [pixels], target="any-cpu").model, pixels)
    noise = float(np.square(rounded - found).sum() / np.square(found).sum())
    assert 0 < noise < 1e-3  # 30 dB
