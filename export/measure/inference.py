"""Run a model over images: the logits, and the time of one image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from calibration.graph.edit import Array
from runtime.errors import FailureError
from runtime.images.preprocess import Preprocess
from runtime.onnx_runtime import onnxruntime as ort
from runtime.text import format_count
from vit.data.datasets import DataError, Images

BATCH = 8  # images a run; a CPU gains nothing from more


class NotFiniteError(FailureError):
    """A model whose outputs are NaN or infinite."""


def batches(images: Images, preprocess: Preprocess, *, size: int = BATCH) -> Iterator[Array]:
    """The images as `uint8 [N, H, W, 3]`, decoded as they are asked for.

    Raises:
        DataError: naming the image that cannot be read.
    """
    for start in range(0, len(images), size):
        yield np.stack([_pixels(images, i, preprocess) for i in range(start, min(start + size, len(images)))])


def _pixels(images: Images, index: int, preprocess: Preprocess) -> Array:
    try:
        return preprocess(images[index])
    except (ValueError, OSError) as error:
        raise DataError(f"{images.describe(index)}: {error}; repair the image or take it out") from error


Progress = Callable[[int], object]


def no_progress(done: int) -> None:
    """Discard progress updates."""


def all_outputs(
    sessions: Sequence[ort.InferenceSession],
    images: Images,
    preprocess: Preprocess,
    progress: Progress = no_progress,
) -> list[dict[str, Array]]:
    """Return every output of each session, `float32 [images, features]`; each image is decoded once."""
    names = [[node.name for node in session.get_outputs()] for session in sessions]
    found: list[list[list[Array]]] = [[] for _ in sessions]
    for batch in batches(images, preprocess):
        for session, rows in zip(sessions, found, strict=True):
            rows.append(session.run(None, {session.get_inputs()[0].name: batch}))
        progress(len(batch))
    return [
        {name: np.concatenate(parts) for name, parts in zip(each, zip(*rows, strict=True), strict=True)}
        for each, rows in zip(names, found, strict=True)
    ]


def check_finite(name: str, outputs: Mapping[str, Array], images: Images, advice: str) -> None:
    """Refuse outputs that are no numbers: no limit would notice, since every comparison with NaN is false.

    Args:
        name: of the variant.
        outputs: float32 [images, features] by name.
        images: those that were measured.
        advice: what to do.

    Raises:
        NotFiniteError: naming the first image.
    """
    for output, rows in outputs.items():
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            raise NotFiniteError(
                f"{name}: expected numbers as {output}, found NaN or infinity on {len(wrong)} of "
                f"{format_count(len(rows), 'image')}, the first one is "
                f"{images.describe(int(wrong[0]))}; {advice}"
            )


def latencies(
    sessions: Mapping[str, ort.InferenceSession], image: Array, *, runs: int = 15
) -> dict[str, dict[str, float]]:
    """Milliseconds of one image `uint8 [1, H, W, 3]`, the sessions in turn: noise meets all alike."""
    feeds = {name: {session.get_inputs()[0].name: image} for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for run in range(runs + 2):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[name])
            if run >= 2:  # the first ones pay for memory and caches
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: {"min": min(t), "median": float(np.median(t))} for name, t in times.items()}
