"""Make the self-test of each model file: test images, and the answers of this machine.

Of 24 made images those are kept whose label is clearest, since labels are compared on the device: where the
two best logits hardly differ, the last bits of a sum decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.edit import Array
from calibration.graph.memory import release_memory
from calibration.measure.verify import FLOAT_KERNELS, INTEGER_KERNELS
from export.image_sets import sample_images
from export.measure.inference import ADVICE, ModelFile, NotFiniteError, Run
from runtime.images.decode import MAX_PIXELS, decode_image
from runtime.images.preprocess import Preprocess
from runtime.onnx_runtime import onnxruntime as ort
from runtime.self_test.document import (
    BEST,
    MOST_BYTES,
    MOST_COLUMNS,
    Answers,
    SelfTest,
    TestImage,
    average_blocks,
)
from runtime.self_test.made_images import MOST_EDGE
from vit.data.datasets import DataError, open_images

CANDIDATES, KEPT = 24, 8  # made images
MOST_PHOTOS, PHOTO_BYTES = 8, 80_000  # of all photos together, as JPEGs
QUALITIES = (90, 75, 60, 45, 30)  # of JPEG, best first
_ENTRY = 8  # characters of a column's index
Outputs = Mapping[str, Array]  # by output: float32 [features]


@dataclass(frozen=True)
class _Candidate:
    image: TestImage
    pixels: Array  # uint8 [H, W, 3]
    float32: Outputs


def make_self_tests(run: Run, environment: Mapping[str, Any]) -> dict[str, SelfTest]:
    """Return the self-test of each variant, by its name; one image per run, on one thread.

    Args:
        run: the variants.
        environment: of this machine: `cpu`, `cpu_kind`, and `packages` with their versions.

    Raises:
        DataError: for photos that cannot be used.
        NotFiniteError: for a variant that answers no made image with numbers.
    """
    preprocess, first = run.source.preprocess, run.variants[0]
    images = [
        TestImage(made=seed, size=choose_made_size(preprocess.size, seed)) for seed in range(CANDIDATES)
    ]
    if run.options.self_test is not None:
        images += read_photos(run.options.self_test, preprocess)
    session = _Session(first)
    pixels = [preprocess(each.open()) for each in images]
    candidates = [_Candidate(*each, session.answer(*each)) for each in zip(images, pixels, strict=True)]
    ranked = _rank([each for each in candidates if each.image.jpeg is None and _are_finite(each.float32)])
    photos = [each for each in candidates if each.image.jpeg is not None]
    found = {}
    for variant in run.variants:
        if variant is not first:
            session = _Session(variant)
        kept = [
            *_keep(ranked, session),
            *((each, session.answer(each.image, each.pixels)) for each in photos),
        ]
        if not all(_are_finite(each) for _, each in kept) or len(kept) == len(photos):
            raise NotFiniteError(
                f"{variant.variant}: expected numbers for the self-test's images, found NaN or infinity; "
                f"{ADVICE[variant.variant]}"
            )
        found[str(variant.variant)] = _describe(run, variant, kept, environment)
        release_memory(run.source.exported.model)
    return found


class _Session:
    """A variant in a session of one thread, which answers one image at a time, and each image once."""

    def __init__(self, variant: ModelFile) -> None:
        self._session: ort.InferenceSession = variant.open(1)
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._known: dict[TestImage, Outputs] = {}

    def answer(self, image: TestImage, pixels: Array) -> Outputs:
        """Return the outputs for an image, uint8 [H, W, 3]."""
        if image not in self._known:
            rows = self._session.run(None, {self._session.get_inputs()[0].name: pixels[None]})
            self._known[image] = {name: row[0] for name, row in zip(self._outputs, rows, strict=True)}
        return self._known[image]


def choose_made_size(size: tuple[int, int], seed: int) -> tuple[int, int]:
    """Return (height, width) of a made image: larger than the input, not square, upright or wide by turns."""
    factors = (7, 6) if seed & 1 else (6, 7)
    height, width = (edge * factor // 4 + 1 for edge, factor in zip(size, factors, strict=True))
    longest = max(height, width, MOST_EDGE)
    height, width = (max(edge * MOST_EDGE // longest, 1) for edge in (height, width))
    return height - (height == width > 1), width


def read_photos(folder: Path, preprocess: Preprocess) -> list[TestImage]:
    """Return some photos of a folder as JPEGs, as small as the preprocessing allows, without their EXIF data.

    Raises:
        DataError: for a folder without images, images that cannot be read, and photos that are too large.
    """
    photos = sample_images(open_images(folder), MOST_PHOTOS)
    before = preprocess.resize_to or 0
    edge = max(*preprocess.size, *(before if isinstance(before, tuple) else (before,)))
    opened = []
    for index, item in enumerate(photos.items):
        try:
            with decode_image(
                item, max_pixels=MAX_PIXELS, exif=preprocess.exif, draft_edge=2 * edge
            ) as image:
                scale = min(edge / min(image.size), 1)
                width, height = (max(round(side * scale), 1) for side in image.size)
                opened.append(image.convert("RGB").resize((width, height)))
        except (ValueError, OSError) as error:
            raise DataError(f"{photos.describe(index)}: {error}; repair the image or take it out") from error
    for quality in QUALITIES:
        files = []
        for image in opened:
            image.save(file := BytesIO(), "JPEG", quality=quality)
            files.append(TestImage(jpeg=file.getvalue()))
        size = sum(len(each.jpeg or b"") for each in files)
        if size <= PHOTO_BYTES:
            return files
    raise DataError(
        f"{folder}: expected photos that take {PHOTO_BYTES:,} bytes at the size of the model, found {size:,} "
        f"({len(files)} photos); give fewer"
    )


def _rank(candidates: list[_Candidate]) -> list[_Candidate]:
    """Return the candidates, the largest difference of float32's two best logits first."""
    if not candidates or "logits" not in candidates[0].float32:
        return candidates
    margins = [np.diff(np.sort(each.float32["logits"])[-2:]).item() for each in candidates]
    return [candidates[index] for index in np.argsort(-np.array(margins), kind="stable")]


def _keep(ranked: list[_Candidate], session: _Session) -> list[tuple[_Candidate, Outputs]]:
    """Return the first candidates that a variant labels as float32 does; where they are few, others too."""
    agreed: list[tuple[_Candidate, Outputs]] = []
    others: list[tuple[_Candidate, Outputs]] = []
    for each in ranked:
        outputs = session.answer(each.image, each.pixels)
        if not _are_finite(outputs):
            continue
        same = "logits" not in outputs or outputs["logits"].argmax() == each.float32["logits"].argmax()
        (agreed if same else others).append((each, outputs))
        if len(agreed) == KEPT:
            break
    return [*agreed, *others][:KEPT]


def _are_finite(outputs: Outputs) -> bool:
    return all(bool(np.isfinite(each).all()) for each in outputs.values())


def _describe(
    run: Run, variant: ModelFile, kept: list[tuple[_Candidate, Outputs]], environment: Mapping[str, Any]
) -> SelfTest:
    kernels = {} if variant.quantized is None else variant.quantized.kernels.counts
    names = list(kept[0][1])
    outputs = {
        name: Answers(
            np.stack([found[name] for _, found in kept]), np.stack([each.float32[name] for each, _ in kept])
        )
        for name in names
    }
    labels = run.source.labels
    best = [np.argsort(-found["logits"], kind="stable")[:BEST] if labels else () for _, found in kept]
    whole = SelfTest(
        images=tuple(each.image for each, _ in kept),
        pixels=tuple(hashlib.sha256(each.pixels.tobytes()).hexdigest() for each, _ in kept),
        means=tuple(None if each.image.jpeg is None else average_blocks(each.pixels) for each, _ in kept),
        columns=None,
        outputs={},
        top=tuple(tuple((int(index), labels[index]) for index in each) for each in best),
        kernels={k: v for k, v in sorted(kernels.items()) if k in INTEGER_KERNELS | FLOAT_KERNELS},
        cpu={"kind": environment["cpu_kind"], "name": environment["cpu"]},
        runtime=f"onnxruntime {environment['packages']['onnxruntime']}",
        latency_ms={
            "file": round(run.latency[variant.variant]["median"], 3),
            "float32": round(run.latency["float32"]["median"], 3),
        },
    )
    return _add_outputs(whole, outputs, sorted({int(index) for each in best for index in each}))


def _add_outputs(test: SelfTest, outputs: Mapping[str, Answers], needed: list[int]) -> SelfTest:
    """Return the self-test with as many columns of each output as fit, those that are needed among them."""
    room = MOST_BYTES - len(test.to_json().encode()) - 1000
    fit = min(room // (len(test.images) * 2 * 16 // 3 + _ENTRY), MOST_COLUMNS)
    widths = {name: each.file.shape[1] for name, each in outputs.items()}
    embedding = min(widths.get("embedding", 0), fit // len(widths))
    columns = None
    if (classes := widths.get("logits", 0)) > fit - embedding:
        spread = np.linspace(0, classes - 1, fit - embedding - len(needed)).astype(int)
        columns = tuple(sorted({*needed, *spread.tolist()}))
    test = replace(
        test,
        columns=columns,
        outputs={
            name: each if name == "logits" else Answers(each.file[:, :embedding], each.float32[:, :embedding])
            for name, each in outputs.items()
        },
    )
    if columns is None:
        return test
    logits = Answers(*(test.keep_columns("logits", rows) for rows in vars(test.outputs["logits"]).values()))
    return replace(test, outputs={**test.outputs, "logits": logits})
