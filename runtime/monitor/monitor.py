"""Count the images and answers of a device, in constant memory, and compare them with those at export."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from ..images.preprocess import ImageSource, Pixels, Preprocess
from ..model_file.metadata import ArtifactError
from ..results import Prediction
from .document import FEWEST_IMAGES, FieldStatistics, Reference
from .drift import count_independent, estimate_noise, measure_distance
from .measure import DIGITS, EMBEDDING, IMAGE, SCORE, make_projection, measure_embedding, measure_image
from .report import DriftReport, StatisticDrift

if TYPE_CHECKING:
    import numpy.typing as npt


WINDOW = 200  # images
SAMPLE = 2_000  # images of a whole run
_open: WeakSet[_Values] = WeakSet()


class Monitor:
    """Compare what a model sees and answers on this device with what it saw and answered at export.

    Many threads may use it. A forked process continues with the counts of its parent.

    Args:
        statistics: of the export, from the model file.
        features: of the embedding that is observed; 0 for none.
        window: images that are compared, 50 or more: the last ones.
        whole: compare a random sample of all images since the start instead, of `window` images.
        min_score: of the classifier.

    Raises:
        ValueError: for a window below 50.
    """

    def __init__(
        self,
        statistics: FieldStatistics,
        *,
        features: int = 0,
        window: int = WINDOW,
        whole: bool = False,
        min_score: float | None = None,
    ) -> None:
        if window < FEWEST_IMAGES:
            raise ValueError(f"monitor must be true, or {FEWEST_IMAGES} images or more, found {window}")
        self._statistics, self._min_score = statistics, min_score
        self._projection = make_projection(features)
        answers = EMBEDDING if features else (SCORE,)
        self._images, self._answers = (_Values(names, window, whole) for names in (IMAGE, answers))

    def preprocess(self, preprocess: Preprocess, image: ImageSource, *, max_pixels: int) -> Pixels:
        """Preprocess an image as `preprocess` does, and count it."""
        sizes: list[tuple[int, int]] = []
        pixels = preprocess(image, max_pixels=max_pixels, take_size=sizes.append)
        self._images.add(measure_image(pixels, sizes[0]))
        return pixels

    def observe_answer(self, answer: Any) -> None:
        """Count an answer: the highest score of a prediction, or an embedding, float32 [features]."""
        if isinstance(answer, np.ndarray):
            self._answers.add(measure_embedding(answer, self._projection))
        elif isinstance(answer, Prediction):
            self._answers.add((answer.top[0].score,))

    def restart(self, statistics: FieldStatistics | None = None) -> None:
        """Forget all images, as after a change of the camera, and compare with other statistics if given."""
        self._statistics = statistics or self._statistics
        self._images.restart()
        self._answers.restart()

    def read(self) -> DriftReport:
        """Compare the images that were counted last with those at export."""
        found = dict[str, StatisticDrift]()
        total = len(self._images.names) + len(self._answers.names)
        for each in (self._images, self._answers):
            rows = each.read()
            for name, values in zip(each.names, rows.T, strict=True):
                found[name] = _compare(
                    values, self._statistics.statistics[name], self._statistics.images, total
                )
        unsure = there = None
        if self._min_score is not None and self._answers.names == (SCORE,) and len(rows):
            unsure = float((rows[:, 0] < self._min_score).mean())
            there = self._statistics.estimate_unsure(self._min_score)
        compared = min(self._images.seen, self._images.window)
        return DriftReport(self._images.seen, compared, self._statistics.images, found, unsure, there)


def open_monitor(
    document: str | None,
    outputs: Mapping[str, int],
    name: str,
    *,
    output: str,
    window: int = WINDOW,
    whole: bool = False,
    min_score: float | None = None,
) -> Monitor:
    """Return a monitor for a model that is loaded.

    Args:
        document: the field statistics in its file (`ModelInfo.field_statistics`).
        outputs: features of each of its outputs (`Metadata.outputs`).
        name: of the model, for messages.
        output: "logits" or "embedding", which is observed.
        window: as for `Monitor`.
        whole: as for `Monitor`.
        min_score: as for `Monitor`.

    Raises:
        ArtifactError: when the file holds no statistics, or none that can be used.
        ValueError: as for `Monitor`.
    """
    if document is None:
        raise ArtifactError(
            f"{name}: it holds no field statistics to compare with; export it again, and measure it on "
            f"{FEWEST_IMAGES} images or more"
        )
    try:
        statistics = FieldStatistics.from_json(document, outputs)
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from error
    features = outputs["embedding"] if output == "embedding" else 0
    return Monitor(statistics, features=features, window=window, whole=whole, min_score=min_score)


def _compare(
    values: npt.NDArray[np.float64], reference: Reference, images: int, statistics: int
) -> StatisticDrift:
    """Compare the values of one statistic on this device, in the order of time, with those at export."""
    bins = len(reference.counts)
    if len(values) == 0:
        return StatisticDrift(None, 1.0, 0, None, reference.median, raised=False)
    found = np.searchsorted(reference.edges, np.round(values, DIGITS))
    distance = measure_distance(np.bincount(found, minlength=bins), np.array(reference.counts))
    independent = count_independent(values)
    noise = estimate_noise(bins, independent, images, statistics)
    raised = independent >= FEWEST_IMAGES and distance > noise
    here = round(float(np.median(values)), DIGITS)
    shown = round(distance, DIGITS), round(noise, DIGITS)
    return StatisticDrift(*shown, int(independent), here, reference.median, raised=raised)


class _Values:
    """Values of some statistics: of the last images, or of a random sample of all."""

    def __init__(self, names: Sequence[str], window: int, whole: bool) -> None:
        self.names, self.window, self._whole = tuple(names), window, whole
        self.lock = threading.Lock()
        self.restart()
        _open.add(self)

    def restart(self) -> None:
        with self.lock:
            self.seen = 0
            self._rows = np.zeros((self.window, len(self.names)))
            self._order = np.zeros(self.window, np.int64)  # number of the image in each row
            self._random = Random(0)

    def add(self, row: Sequence[float] | npt.NDArray[np.float32]) -> None:
        with self.lock:
            at = self.seen % self.window
            if self._whole and self.seen >= self.window:  # each image has the same chance to be kept
                at = self._random.randrange(self.seen + 1)
            if at < self.window:
                self._rows[at], self._order[at] = row, self.seen
            self.seen += 1

    def read(self) -> npt.NDArray[np.float64]:
        """Return the rows in the order of time, float64 [images, names]."""
        with self.lock:
            count = min(self.seen, self.window)
            found: npt.NDArray[np.float64] = self._rows[:count][np.argsort(self._order[:count])]
            return found


def _after_fork() -> None:
    for each in list(_open):
        each.lock = threading.Lock()  # a thread that held the old one is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
