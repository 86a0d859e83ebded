"""Self-test of each model file: the test images, and the drift of the file's answers on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measure.drift import measure_drift
from export.measure.inference import Run
from export.measure.self_test import make_self_tests
from export.report.number_formats import decibels
from export.report.provenance import describe_environment
from export.report.section import Results, Section
from runtime.images.decode import MAX_PIXELS, decode_image
from runtime.self_test.document import SelfTest
from runtime.text import format_count
from vit.page.image_uri import jpeg_uri

SHOWN_EDGE = 112  # pixels


@dataclass(frozen=True)
class SelfTests(Section):
    """The self-test of each variant, by its name."""

    tests: Mapping[str, SelfTest]
    template = "self_tests.j2"

    @classmethod
    def measure(cls, run: Run) -> SelfTests:
        """Choose the images and answer them on this machine."""
        return cls(make_self_tests(run, describe_environment()))

    @property
    def photo_bytes(self) -> list[int]:
        """The size of each photo that is in every model file, as a JPEG."""
        (test, *_) = self.tests.values()
        return [len(each.jpeg) for each in test.images if each.jpeg is not None]

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each variant: images, bytes of the document, and drift from float32 in dB."""
        first = {
            name: next(iter(test.outputs.values())) for name, test in self.tests.items()
        }  # logits if any
        return {
            name: {
                "images": len(test.images),
                "photos": len(self.photo_bytes),
                "bytes": len(test.to_json().encode()),
                "sqnr": measure_drift(first[name].float32, first[name].file).sqnr,
            }
            for name, test in self.tests.items()
        }

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return the figures, and what photos take."""
        return {"self_test": {"photo_bytes": sum(self.photo_bytes), "models": self.figures()}}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return the figures in a line; another one where photos are in the files."""
        figures, sizes = self.figures(), self.photo_bytes
        made = format_count(figures["float32"]["images"] - len(sizes), "made image")
        each = [f"{name} {decibels(found['sqnr'])}" for name, found in figures.items() if name != "float32"]
        lines = [f"self-test in each file: {', '.join([made, *each])}"]
        if sizes:
            lines.append(
                f"every model file holds {format_count(len(sizes), 'photo')} of --self-test ({sum(sizes):,} "
                "bytes of JPEG): whoever has a file can see them"
            )
        return lines

    def context(self, results: Results) -> Mapping[str, Any]:
        """Return the figures, and each image of float32's self-test with its label."""
        (test, *_) = self.tests.values()
        shown = []
        for image, top in zip(test.images, test.top, strict=True):
            with decode_image(image.open(), max_pixels=MAX_PIXELS, exif=False, draft_edge=None) as decoded:
                small = decoded.copy()
            small.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
            kind = "photo" if image.made is None else f"made image {image.made}"
            shown.append((jpeg_uri(np.asarray(small)), kind, top[0][1] if top else ""))
        return {"figures": self.figures(), "images": shown}
