"""Statistics of one image and of an embedding."""

from __future__ import annotations

from math import log, log2

import numpy as np
import pytest
from PIL import Image

from runtime.images.preprocess import Preprocess
from runtime.monitor.measure import EMBEDDING, IMAGE, make_projection, measure_embedding, measure_image


def measure(pixels: np.ndarray, size: tuple[int, int] = (64, 64)) -> dict[str, float]:
    return dict(zip(IMAGE, measure_image(pixels.astype(np.uint8), size), strict=True))


def gray(edge: int = 64) -> np.ndarray:
    values = np.random.default_rng(0).integers(40, 200, (edge, edge, 1))
    return np.repeat(values, 3, axis=2)


@pytest.mark.parametrize("edge", [1, 2, 8, 64, 224])
def test_an_even_image_has_its_brightness_and_nothing_else(edge: int) -> None:
    found = measure(np.full((edge, edge, 3), 102), (200, 100))
    rest = {"contrast", "sharpness", "detail", "warmth", "tint", "white"}
    assert found["brightness"] == pytest.approx(0.4, abs=1e-5)
    assert found["peak"] == pytest.approx(0.4, abs=1e-5)
    assert all(abs(found[name]) < 1e-3 for name in rest)
    assert (found["size"], found["shape"]) == (pytest.approx(log2(20000) / 2), 1.0)


def test_colors_are_ratios() -> None:
    red = measure(np.full((8, 8, 3), (200, 100, 50)))
    assert red["warmth"] == red["white"] == pytest.approx(log(201 / 51))
    assert red["tint"] == pytest.approx(log(101**2 / (201 * 51)) / 2)
    assert measure(np.zeros((8, 8, 3)))["warmth"] == 0


def test_blur_and_noise_move_sharpness_and_detail() -> None:
    sharp = gray()
    smooth = np.stack([np.tile(np.linspace(0, 255, 64), (64, 1))] * 3, axis=2)
    assert measure(smooth)["sharpness"] < 0.5 < measure(sharp)["sharpness"]
    assert measure(smooth)["detail"] < 0.01 < measure(sharp)["detail"]


def test_the_size_is_that_of_the_upright_image_before_preprocessing(tmp_path: object) -> None:
    image = Image.new("RGB", (2000, 1000))
    exif = image.getexif()
    exif[0x0112] = 6
    path = f"{tmp_path}/rotated.jpg"
    image.save(path, exif=exif)
    for preprocess, expected in (
        (Preprocess(size=(32, 32)), (1000, 2000)),  # decoded at 1/8
        (Preprocess(size=(32, 32), exif=False, decode="full"), (2000, 1000)),
    ):
        sizes: list[tuple[int, int]] = []
        preprocess(path, take_size=sizes.append)
        assert sizes == [expected]


def test_the_projection_is_the_same_everywhere() -> None:
    projection = make_projection(384)
    assert set(np.unique(projection)) == {-1, 1}
    assert projection[:8].ravel().astype(int).tolist() == PROJECTION
    rows = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float32)
    found = np.array([measure_embedding(row, projection) for row in rows])
    assert found.shape == (1000, len(EMBEDDING))
    assert found.std() == pytest.approx(1, abs=0.05)


# Of SHAKE-256 of "vit-edge".
PROJECTION = [
    -1,
    -1,
    -1,
    1,
    1,
    -1,
    -1,
    -1,
    1,
    -1,
    1,
    1,
    -1,
    1,
    1,
    -1,
    1,
    -1,
    1,
    1,
    1,
    -1,
    1,
    1,
    -1,
    1,
    -1,
    1,
    -1,
    -1,
    -1,
    1,
]
