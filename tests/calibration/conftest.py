"""Images of the small models, for calibration and for measurement."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def images(models, pixels_for):
    """Return two sets of images of a model: to calibrate with, and to measure on."""

    def make(name: str) -> tuple[np.ndarray, np.ndarray]:
        config = models[name].config
        return pixels_for(config, count=24, seed=1), pixels_for(config, count=16, seed=2)

    return make
