"""Statistics of the images that the export measured: a JSON document in the model file, untrusted.

docs/reference/model-file.md describes every field for other languages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ..model_file.metadata import ArtifactError
from ..strict_json import parse_json, read_field
from .measure import EMBEDDING, IMAGE, NAMES, SCORE

FIELD_VERSION = 1
MOST_BYTES = 8_000  # of the document
MOST_EDGES = 16  # of a histogram
FEWEST_IMAGES = 50  # at export; fewer say too little about any other image
SCORE_BINS = 20  # of equal width, of `scores`
_LARGEST = 1e6  # absolute, of any number


@dataclass(frozen=True)
class Reference:
    """Histogram of one statistic of the images that the export measured.

    Attributes:
        edges: rising; the lowest and the highest lie outside of all values.
        counts: images by bin, one more than edges: bin i holds the values above edge i - 1, up to edge i.
        median: of the values.
        deviation: their standard deviation.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float
    deviation: float


@dataclass(frozen=True)
class FieldStatistics:
    """Statistics of the images that the export measured.

    Attributes:
        images: how many these were.
        statistics: by name; those of an answer where the model gives one.
        scores: images by their highest score, in 20 bins of 0.05; None for a model without classes.
    """

    images: int
    statistics: Mapping[str, Reference]
    scores: tuple[int, ...] | None

    def estimate_unsure(self, min_score: float) -> float | None:
        """Return about which share of those images scores below `min_score`, 0 to 1; None without classes."""
        if self.scores is None:
            return None
        whole = int(min_score * SCORE_BINS)
        part = self.scores[whole] * (min_score * SCORE_BINS - whole) if whole < SCORE_BINS else 0
        return (sum(self.scores[:whole]) + part) / self.images

    def to_json(self) -> str:
        """Return the JSON document; raise ArtifactError when it is larger than it may be."""
        text = json.dumps({"version": FIELD_VERSION, **asdict(self)}, allow_nan=False)
        _check_size(text)
        return text

    @staticmethod
    def from_json(text: str, outputs: Mapping[str, int]) -> FieldStatistics:
        """Return the statistics in a document that `to_json` has written.

        Args:
            text: the document.
            outputs: features of each output of the model (`Metadata.outputs`).

        Raises:
            ArtifactError: when the document is not one that `to_json` writes for such a model.
        """
        try:
            _check_size(text)
            return _read(parse_json(text), outputs)
        except ValueError as error:
            raise ArtifactError(
                f"its field statistics are not usable: {error}; export the model again"
            ) from error


def _check_size(text: str) -> None:
    size = len(text.encode("utf-8", "replace"))
    if size > MOST_BYTES:
        raise ArtifactError(f"expected field statistics of at most {MOST_BYTES:,} bytes, found {size:,}")


def _expect(holds: object, what: str, expected: str, found: object) -> None:
    if not holds:
        raise ValueError(f"expected {what} to be {expected}, found {found!r:.60}")


def _read(document: Any, outputs: Mapping[str, int]) -> FieldStatistics:
    version = read_field(document, "version", int, where="document")
    _expect(version == FIELD_VERSION, "version", f"{FIELD_VERSION} (is vit-edge older?)", version)
    known = {"version", "images", "statistics", "scores"}
    _expect(document.keys() == known, "the fields", ", ".join(sorted(known)), sorted(document))
    images = read_field(document, "images", int, where="document")
    _expect(FEWEST_IMAGES <= images <= 2**31, "images", f"{FEWEST_IMAGES} and more", images)
    found = read_field(document, "statistics", dict, where="document")
    names = {
        *IMAGE,
        *([SCORE] if "logits" in outputs else []),
        *(EMBEDDING if "embedding" in outputs else ()),
    }
    _expect(found.keys() == names, "statistics", ", ".join(sorted(names)), sorted(found))
    statistics = {name: _read_reference(found[name], name, images) for name in NAMES if name in names}
    scores = document["scores"]
    if "logits" in outputs or scores is not None:
        scores = _read_counts(document, "scores", SCORE_BINS, images, "document")
    return FieldStatistics(images, statistics, scores)


def _read_reference(entry: Any, name: str, images: int) -> Reference:
    edges = read_field(entry, "edges", list[float], where=name)
    known = {"edges", "counts", "median", "deviation"}
    _expect(entry.keys() == known, f"the fields of {name}", ", ".join(sorted(known)), sorted(entry))
    rising = all(one < other for one, other in pairwise(edges))
    fits = 2 <= len(edges) <= MOST_EDGES and rising and max(map(abs, edges)) <= _LARGEST
    _expect(fits, f"edges of {name}", f"2 to {MOST_EDGES} rising numbers", edges)
    median, deviation = (read_field(entry, each, float, where=name) for each in ("median", "deviation"))
    inside = edges[0] <= median <= edges[-1] and 0 <= deviation <= _LARGEST
    _expect(inside, f"median and deviation of {name}", "of the values", (median, deviation))
    counts = _read_counts(entry, "counts", len(edges) + 1, images, name)
    return Reference(tuple(edges), counts, median, deviation)


def _read_counts(entry: Any, name: str, bins: int, images: int, where: str) -> tuple[int, ...]:
    counts = read_field(entry, name, list[int], where=where)
    whole = len(counts) == bins and all(each >= 0 for each in counts) and sum(counts) == images
    _expect(whole, f"{name} of {where}", f"{bins} counts of {images:,} images together", counts)
    return tuple(counts)
