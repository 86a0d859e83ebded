"""The recipe gives the same bytes everywhere; javascript/test/made_images.test.mjs reads the same table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.self_test.made_images import MOST_EDGE, make_image

TABLE = json.loads(Path(__file__).with_name("made_images.json").read_text())


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case['seed']}-{case['height']}x{case['width']}")
def test_the_bytes_are_those_of_the_table(case: dict[str, int]) -> None:
    image = make_image(case["seed"], case["height"], case["width"])
    assert (image.dtype, image.shape) == (np.uint8, (case["height"], case["width"], 3))
    assert hashlib.sha256(image.tobytes()).hexdigest() == case["sha256"]


def test_images_differ_and_have_the_spectrum_of_photos() -> None:
    """Neighbors are alike, pixels far apart are not; the three channels are not one."""
    images = [make_image(seed, 96, 128).astype(float) for seed in range(24)]
    assert len({image.tobytes() for image in images}) == 24
    for seed, image in enumerate(images):
        near = np.abs(image[:, 1:] - image[:, :-1]).mean()
        far = np.abs(image[:, 60:] - image[:, :-60]).mean()
        assert near < 0.6 * far, seed
        assert np.abs(image[..., 0] - image[..., 2]).mean() > 1.5, seed
        assert image.std() > 15, seed


@pytest.mark.parametrize(
    "wrong", [(-1, 8, 8), (2**32, 8, 8), (0, 0, 8), (0, 8, 0), (0, MOST_EDGE + 1, 8), (0, 8, MOST_EDGE + 1)]
)
def test_arguments_beyond_the_limits_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"edges from 1 to 1024, found"):
        make_image(*wrong)
