"""Statistics of the evaluation images for the model files, with which a device finds drift later."""

from __future__ import annotations

import numpy as np

from calibration.graph.edit import Array
from export.measure.inference import Run
from runtime.monitor.document import FEWEST_IMAGES, SCORE_BINS, FieldStatistics, Reference
from runtime.monitor.measure import DIGITS, EMBEDDING, IMAGE, SCORE, make_projection, measure_embedding
from runtime.results import make_prediction

BINS, IMAGES_PER_BIN = 8, 10  # between the lowest and the highest value; the second number is the fewest
_HALF = 0.5 * 10**-DIGITS  # edges lie between rounded values


def make_field_statistics(run: Run, variant: str, temperature: float) -> FieldStatistics | None:
    """Return the statistics of the evaluation images for the file of a variant; None with too few images.

    Args:
        run: the variants.
        variant: whose answers are counted.
        temperature: of its scores.
    """
    images = len(run.image_statistics)
    if images < FEWEST_IMAGES:
        return None
    columns = dict(zip(IMAGE, run.image_statistics.T, strict=True))
    labels, scores = run.source.labels, None
    if labels:
        predictions = (make_prediction(row, labels, 1, temperature) for row in run.logits[variant])
        best = np.array([each.top[0].score for each in predictions])
        bins = np.minimum((best * SCORE_BINS).astype(int), SCORE_BINS - 1)
        scores = tuple(np.bincount(bins, minlength=SCORE_BINS).tolist())
        columns[SCORE] = best
    if variant in run.embeddings:
        rows = run.embeddings[variant]
        projection = make_projection(rows.shape[1])
        columns |= zip(
            EMBEDDING, np.stack([measure_embedding(each, projection) for each in rows]).T, strict=True
        )
    statistics = {name: describe_values(values) for name, values in columns.items()}
    return FieldStatistics(images, statistics, scores)


def describe_values(values: Array) -> Reference:
    """Return the histogram of the values of one statistic, in bins of about equal counts.

    Args:
        values: float [images].
    """
    values = np.round(values.astype(np.float64), DIGITS)
    count = min(BINS, len(values) // IMAGES_PER_BIN)
    quantiles = np.quantile(values, np.arange(1, count + 1) / count, method="inverted_cdf")
    # No image is below the first edge or above the last one: there a device may have some all the same.
    edges = np.round(np.append(values.min() - _HALF, np.unique(quantiles) + _HALF), DIGITS + 1)
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return Reference(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        median=round(float(np.median(values)), DIGITS),
        deviation=round(float(values.std()), DIGITS),
    )
