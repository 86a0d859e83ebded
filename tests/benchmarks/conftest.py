"""One tiny model, built in every way once for all tests of the benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.peers import Bench, build
from runtime.cpu import cpu_kind
from runtime.model_file.targets import choose_target
from vit.config import ViTConfig
from vit.model import ViT

CONFIG = ViTConfig(image_size=(32, 32), patch_size=8, width=64, depth=2, heads=2, mlp_width=128, classes=4)


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (1, 32, 32, 3), np.uint8) for _ in range(4)]
    return Bench(ViT(CONFIG).eval(), images, tmp_path_factory.mktemp("peers"), choose_target(cpu_kind()))


@pytest.fixture(scope="session")
def built(bench):
    return list(build(bench, variations=True))
