"""Findings of a monitor: numbers, and one sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

from ..text import format_count
from .document import FEWEST_IMAGES
from .measure import EMBEDDING

# What lower and higher values mean, and where to look.
_WORDS: Mapping[str, tuple[str, str, str]] = {
    "score": ("scores are lower", "scores are higher", "the images with the lowest scores, and label some"),
    "brightness": ("images are darker", "images are brighter", "exposure, lighting and the order of bytes"),
    "contrast": ("contrast is lower", "contrast is higher", "exposure, haze and the lens"),
    "peak": ("the brightest pixels are darker", "the brightest pixels are brighter", "exposure and gain"),
    "sharpness": ("images are less sharp", "images are sharper or noisier", "focus, the lens and noise"),
    "detail": ("images have less detail", "images have more detail or noise", "focus, the lens and noise"),
    "warmth": ("images are bluer", "images are redder", "white balance, and RGB against BGR"),
    "tint": ("images are less green", "images are greener", "white balance and the lamps"),
    "white": ("white is bluer", "white is redder", "white balance, and RGB against BGR"),
    "size": ("images are smaller", "images are larger", "what the app does before the model's preprocessing"),
    "shape": ("images are narrower", "images are wider", "what is cut off, and the rotation"),
}
_EMBEDDING = ("embeddings are different", "embeddings are different", "the images, whatever they show")


@dataclass(frozen=True)
class StatisticDrift:
    """One statistic: this device against the export.

    Attributes:
        distance: Jensen-Shannon divergence of both histograms in bits, 0 to 1; None without an image.
        noise: the distance that chance alone hardly exceeds, for so many images here and there.
        independent: images here, less where neighbors resemble each other, as frames of a video do.
        here: median on this device.
        there: median at export.
        raised: the distance is above the noise, and there are enough images to say so.
    """

    distance: float | None
    noise: float
    independent: int
    here: float | None
    there: float
    raised: bool


@dataclass(frozen=True)
class DriftReport:
    """Images and answers of a device against those that the export measured.

    Attributes:
        seen: images since the start.
        images: those that are compared: the last ones, or a sample of all.
        reference: images at export.
        statistics: by name.
        unsure: share of images below `min_score` here, 0 to 1; None without `min_score`.
        unsure_there: about the same share at export.
    """

    seen: int
    images: int
    reference: int
    statistics: Mapping[str, StatisticDrift]
    unsure: float | None = None
    unsure_there: float | None = None

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of the statistics that differ from those at export by more than chance, largest first."""
        names = [name for name, each in self.statistics.items() if each.raised]
        return tuple(sorted(names, key=self._excess, reverse=True))

    @property
    def judged(self) -> bool:
        """True if there are enough independent images to judge any statistic."""
        return any(each.independent >= FEWEST_IMAGES for each in self.statistics.values())

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        compared = f"{format_count(self.images, 'image')} against {self.reference:,} at export"
        if not self.raised:
            if self.judged:
                return f"no drift: {compared}"
            independent = max((each.independent for each in self.statistics.values()), default=0)
            return f"drift is not judged yet: {compared}, of which {independent} independent (minimum: 50)"
        first, *others = self.raised
        found = self.statistics[first]
        lower, higher, advice = _WORDS.get(first, _EMBEDDING)
        assert found.here is not None  # it is raised
        what = lower if found.here < found.there else higher
        if found.here == found.there:
            what = f"the {first} is distributed otherwise"
        both = f"median {format_value(first, found.here)}, there {format_value(first, found.there)}"
        more = f"; also: {', '.join(others)}" if others else ""
        return (
            f"{what} than at export ({both}): these images differ from those measured; look at {advice}"
            f"{more} ({compared})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the document of monitor.json."""
        return {**asdict(self), "raised": list(self.raised), "sentence": self.sentence}

    def _excess(self, name: str) -> float:
        found = self.statistics[name]
        return (found.distance or 0) / found.noise


def format_value(name: str, value: float) -> str:
    """Return the value of a statistic for people: logarithms as what they are of.

    Args:
        name: of the statistic.
        value: of one image, or a median.
    """
    if name == "size":
        return f"{2**value:.0f} pixels per edge"
    if name == "shape":
        return f"{2**value:.2f} times as wide as high"
    if name in ("warmth", "tint", "white"):
        return f"a ratio of {exp(value):.2f}"
    return f"{value:.2f}" if name == "score" or name in EMBEDDING else f"{value:.3f}"
