"""The float32 ONNX graph against torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from export.write_artifact import serialize_model

NAMES = ["plain", "odd", "rich"]


def torch_logits(model, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", ["raw_graphs", "canonical"])
@pytest.mark.parametrize("batch", [1, 5])
def test_matches_torch_at_any_batch(name, stage, batch, request, models, logits_of, pixels_for) -> None:
    graph = request.getfixturevalue(stage)[name]
    pixels = pixels_for(models[name].config, count=batch, seed=batch)
    expected = torch_logits(models[name], pixels)
    found = logits_of(graph, pixels)
    assert found.shape == (batch, models[name].config.classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_extremes_of_pixels(canonical, models, logits_of) -> None:
    height, width = models["odd"].config.image_size
    pixels = np.stack([np.full((height, width, 3), value, np.uint8) for value in (0, 255)])
    expected = torch_logits(models["odd"], pixels)
    found = logits_of(canonical["odd"], pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_says_nothing_of_this_machine(name, canonical, root) -> None:
    data = serialize_model(canonical[name])
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [each.domain for each in model.opset_import] == [""]
    assert model.opset_import[0].version >= 20  # Gelu is one node
    assert str(root).encode() not in data
    assert b"torch" not in data
    assert b".py" not in data


def test_the_same_weights_are_the_same_file(canonical) -> None:
    assert serialize_model(canonical["plain"]) == serialize_model(canonical["plain"].clone())


def test_writing_leaves_the_graph_alone(canonical) -> None:
    before = ir.to_proto(canonical["plain"]).SerializeToString()
    serialize_model(canonical["plain"])
    assert ir.to_proto(canonical["plain"]).SerializeToString() == before
