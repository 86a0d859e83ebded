"""Field statistics of made or real images, and model files that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from PIL import Image, ImageFilter

from export.measure.field_statistics import describe_values
from runtime.images.preprocess import Preprocess
from runtime.model_file.metadata import FIELD_STATISTICS_KEY
from runtime.monitor.document import FieldStatistics
from runtime.monitor.measure import IMAGE, measure_image


def measure_all(images: Iterable[Any], preprocess: Preprocess) -> np.ndarray:
    """Statistics of each image: float64 [images, IMAGE]."""
    rows = []
    for image in images:
        sizes: list[tuple[int, int]] = []
        pixels = preprocess(image, take_size=sizes.append)
        rows.append(measure_image(pixels, sizes[0]))
    return np.array(rows)


def describe_rows(rows: np.ndarray, **answers: np.ndarray) -> FieldStatistics:
    """Statistics of the rows of `measure_all`, and of values by name, such as `score`."""
    columns: Mapping[str, np.ndarray] = dict(zip(IMAGE, rows.T, strict=True)) | answers
    scores = answers.get("score")
    counts = None
    if scores is not None:
        bins = np.minimum((scores * 20).astype(int), 19)
        counts = tuple(np.bincount(bins, minlength=20).tolist())
    return FieldStatistics(
        len(rows), {name: describe_values(values) for name, values in columns.items()}, counts
    )


def add_statistics(path: Path, text: str) -> Path:
    """Add the document to a model file."""
    model = onnx.load(path)
    entries = {each.key: each.value for each in model.metadata_props} | {FIELD_STATISTICS_KEY: text}
    helper.set_model_props(model, entries)
    onnx.save(model, path)
    return path


def change_image(image: Image.Image, how: str, random: np.random.Generator) -> Image.Image:
    """An image of a device on which something has changed."""
    values = np.asarray(image.convert("RGB")).astype(np.float32)
    if how == "blurred":
        return image.convert("RGB").filter(ImageFilter.GaussianBlur(0.015 * min(image.size)))
    changed = {
        "inverted": lambda: 255 - values,
        "darker": lambda: values * 0.7,
        "noisy": lambda: values + random.normal(0, 25.5, values.shape),
        "warmer": lambda: values * (1.15, 1, 0.87),
    }[how]()
    return Image.fromarray(np.clip(np.round(changed), 0, 255).astype(np.uint8))


CHANGES = ("inverted", "darker", "blurred", "noisy", "warmer")
