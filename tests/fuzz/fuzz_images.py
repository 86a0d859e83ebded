"""Fuzz the reading of images: any bytes are pixels or an ImageError.

    pip install atheris
    python tests/fuzz/fuzz_images.py CORPUS -max_total_time=600

CORPUS is a folder of small images of many formats, which grows.
"""

from __future__ import annotations

import logging
import sys
import warnings

import atheris

with atheris.instrument_imports():
    from PIL import Image

    from runtime.images.preprocess import ImageError, Preprocess

SPECS = [
    Preprocess(size=(16, 16)),
    Preprocess(size=(16, 12), resize="crop", resize_to=20, interpolation="bicubic", decode="draft"),
    Preprocess(size=(5, 7), resize="crop", interpolation="lanczos", exif=False),
]


def check_message(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 500


def one_input(data: bytes) -> None:
    for spec in SPECS:
        try:
            pixels = spec(data, max_pixels=1_000_000)
        except ImageError as error:
            check_message(str(error))
        else:
            assert pixels.shape == (*spec.size, 3)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    Image.init()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
