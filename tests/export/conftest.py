"""Small random models, exported once a run, and the logits of their graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from export.torch_onnx import export_raw
from vit.config import ViTConfig
from vit.model import ViT

CONFIGS: Mapping[str, ViTConfig] = {
    "plain": ViTConfig(
        image_size=(32, 32), patch_size=8, width=32, depth=2, heads=4, mlp_width=64, classes=10
    ),
    # Nothing square, nothing even, means and deviations that differ by channel.
    "odd": ViTConfig(
        image_size=(21, 35),
        patch_size=7,
        width=33,
        depth=2,
        heads=3,
        mlp_width=51,
        classes=7,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    # Everything that only some models have.
    "rich": ViTConfig(
        image_size=(16, 24),
        patch_size=8,
        width=16,
        depth=2,
        heads=2,
        mlp_width=24,
        classes=5,
        representation=12,
        layer_scale=True,
        norm_epsilon=1e-12,
        activation="gelu_tanh",
    ),
}


def lively(config: ViTConfig) -> ViT:
    """A model in which every parameter matters: none is zero or one, as first weights are."""
    random = np.random.default_rng(7)
    model = ViT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(random.normal(size=parameter.shape).astype(np.float32))
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(noise * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


@pytest.fixture(scope="session")
def models() -> Mapping[str, ViT]:
    return {name: lively(config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def raw_graphs(models: Mapping[str, ViT]) -> Mapping[str, ir.Model]:
    """What torch's exporter wrote; tests work on clones."""
    return {name: export_raw(model) for name, model in models.items()}


Logits = Callable[[ir.Model, np.ndarray], np.ndarray]


@pytest.fixture(scope="session")
def logits_of() -> Logits:
    """Run a graph as it stands: ONNX Runtime's own rewrites are off."""

    def run(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        data = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
        return np.asarray(found)

    return run


@pytest.fixture(scope="session")
def pixels_for() -> Callable[..., np.ndarray]:
    """Random pictures of a model's size."""

    def make(config: ViTConfig, count: int = 3, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        return random.integers(0, 256, (count, *config.image_size, 3), np.uint8)

    return make
