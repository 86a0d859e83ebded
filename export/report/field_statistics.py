"""Statistics of the evaluation images in each model file, with which a device finds drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.measure.field_statistics import make_field_statistics
from export.measure.inference import Run
from export.report.reliability import Reliability
from export.report.section import Results, Section
from runtime.monitor.document import FEWEST_IMAGES, FieldStatistics
from runtime.monitor.report import format_value
from runtime.text import format_count


@dataclass(frozen=True)
class FieldStatisticsSection(Section):
    """The statistics in the file of each variant, by its name; none with too few images."""

    statistics: Mapping[str, FieldStatistics]
    template = "field_statistics.j2"
    folded = True

    @classmethod
    def measure(cls, run: Run) -> FieldStatisticsSection:
        """Sum up the images and the answers of each variant."""
        reliability = run.once(Reliability.measure)
        temperature = 1.0 if reliability is None else reliability.temperature
        made = {each.variant: make_field_statistics(run, each.variant, temperature) for each in run.variants}
        return cls({name: each for name, each in made.items() if each is not None})

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        """Return images, bytes of the document, and the median of each statistic, by variant."""
        models = {
            name: {
                "images": each.images,
                "bytes": len(each.to_json().encode()),
                "medians": {statistic: found.median for statistic, found in each.statistics.items()},
            }
            for name, each in self.statistics.items()
        }
        return {"field_statistics": models}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        """Return what a device has to compare with, in a line."""
        if not self.statistics:
            found = format_count(len(results.images), "image")
            return [
                f"field statistics: none, monitor=True needs {FEWEST_IMAGES} images and more, here {found}"
            ]
        first = next(iter(self.statistics.values()))
        names = format_count(len(first.statistics), "statistic")
        return [f"field statistics in each file, for monitor=True: {names} of {first.images:,} images"]

    def context(self, results: Results) -> Mapping[str, Any] | None:
        """Return the medians as text, by statistic and variant; None without any."""
        rows = (
            {
                name: [format_value(name, each.statistics[name].median) for each in self.statistics.values()]
                for name in next(iter(self.statistics.values())).statistics
            }
            if self.statistics
            else None
        )
        return None if rows is None else {"rows": rows}
