"""Make the self-test of each model file: test images, and the answers of this machine.

Of 24 made images those are kept whose label is clearest, since labels are compared on the device: where the
two best logits hardly differ, the last bits of a sum decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from calibration.graph.memory import release_memory
from export.image_sets import sample_images
from export.measure.inference import ADVICE, ModelFile, NotFiniteError, Run
from runtime.images.decode import MAX_PIXELS, decode_image
from runtime.images.preprocess import Pixels, Preprocess
from runtime.self_test.answers import Outputs, hash_pixels, run_image
from runtime.self_test.document import (
    BEST,
    FLOAT_KERNELS,
    INTEGER_KERNELS,
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


def make_self_tests(run: Run, environment: Mapping[str, Any]) -> dict[str, SelfTest]:
    """Return the self-test of each variant, by its name; one image per run, on one thread.

    Args:
        run: the variants.
        environment: of this machine: `cpu`, `cpu_kind`, and `packages` with their versions.

    Raises:
        DataError: for photos that cannot be used.
        NotFiniteError: for a variant that answers no made image with numbers.
    """
    preprocess = run.source.preprocess
    images = [
        TestImage(made=seed, size=choose_made_size(preprocess.size, seed)) for seed in range(CANDIDATES)
    ]
    if run.options.self_test is not None:
        images += read_photos(run.options.self_test, preprocess)
    pixels = [preprocess(each.open()) for each in images]
    floats: list[Outputs] = []
    found = {}
    for variant in run.variants:
        answer = partial(run_image, variant.open(1), device="cpu", name=variant.variant)
        files = [answer(each) for each in pixels]
        floats = floats or files
        made, photos = _choose_made(floats[:CANDIDATES], files), range(CANDIDATES, len(images))
        if not made or not all(_are_finite(files[index]) for index in photos):
            raise NotFiniteError(
                f"{variant.variant}: expected numbers for the self-test's images, found NaN or infinity; "
                f"{ADVICE[variant.variant]}"
            )
        kept = [(images[i], pixels[i], floats[i], files[i]) for i in (*made, *photos)]
        found[str(variant.variant)] = _describe(run, variant, kept, environment)
        release_memory(run.source.exported.model)
    return found


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


def _choose_made(floats: Sequence[Outputs], files: Sequence[Outputs]) -> list[int]:
    """Return the candidates to keep, clearest first: those with the label of float32, then others."""

    def rank(index: int) -> tuple[bool, float]:
        if "logits" not in floats[index]:
            return False, 0
        exact, found = (each[index]["logits"][0] for each in (floats, files))
        second, first = np.sort(exact)[-2:]
        return exact.argmax() != found.argmax(), second - first

    finite = [index for index, each in enumerate(floats) if _are_finite(each, files[index])]
    return sorted(finite, key=rank)[:KEPT]


def _are_finite(*answers: Outputs) -> bool:
    return all(np.isfinite(rows).all() for each in answers for rows in each.values())


def _describe(
    run: Run,
    variant: ModelFile,
    kept: list[tuple[TestImage, Pixels, Outputs, Outputs]],
    environment: Mapping[str, Any],
) -> SelfTest:
    images, pixels, floats, files = zip(*kept, strict=True)
    kernels = {} if variant.quantized is None else variant.quantized.kernels.counts
    labels = run.source.labels
    best = [np.argsort(-each["logits"][0], kind="stable")[:BEST].tolist() if labels else [] for each in files]
    test = SelfTest(
        images=images,
        pixels=tuple(map(hash_pixels, pixels)),
        means=tuple(None if image.jpeg is None else average_blocks(each) for image, each, *_ in kept),
        columns=None,
        outputs={
            name: Answers(*(np.concatenate([each[name] for each in rows]) for rows in (files, floats)))
            for name in files[0]
        },
        top=tuple(tuple((index, labels[index]) for index in each) for each in best),
        kernels={k: v for k, v in sorted(kernels.items()) if k in INTEGER_KERNELS | FLOAT_KERNELS},
        cpu={"kind": environment["cpu_kind"], "name": environment["cpu"]},
        runtime=f"onnxruntime {environment['packages']['onnxruntime']}",
        latency_ms={
            "file": round(run.latency[variant.variant]["median"], 3),
            "float32": round(run.latency["float32"]["median"], 3),
        },
    )
    return _fit_columns(test, {index for each in best for index in each})


def _fit_columns(test: SelfTest, needed: set[int]) -> SelfTest:
    """Return the self-test with as many columns of each output as fit, those that are needed among them."""
    room = MOST_BYTES - len(replace(test, outputs={}).to_json().encode()) - 1000
    fit = min(room // (len(test.images) * 2 * 16 // 3 + _ENTRY), MOST_COLUMNS)
    widths = {name: each.file.shape[1] for name, each in test.outputs.items()}
    embedding = min(widths.get("embedding", 0), fit // len(widths))
    kept: dict[str, Any] = {"logits": slice(None), "embedding": slice(embedding)}
    columns = None
    if (classes := widths.get("logits", 0)) > fit - embedding:
        spread = np.linspace(0, classes - 1, fit - embedding - len(needed)).astype(int)
        columns = tuple(sorted({*needed, *spread.tolist()}))
        kept["logits"] = list(columns)
    outputs = {
        name: Answers(each.file[:, kept[name]], each.float32[:, kept[name]])
        for name, each in test.outputs.items()
    }
    return replace(test, columns=columns, outputs=outputs)
