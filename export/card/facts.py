"""Facts of an exported model that its papers state, read from report.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calibration.measure.statistics import Interval, wilson_interval
from export.write_artifact import hash_file
from runtime.errors import InputError

REPORT = "report.json"
_FIELDS = (
    "producer",
    "source",
    "preprocess",
    "environment",
    "evaluation",
    "models",
    "verdict",
    "made",
    "warnings",
)


class CardError(InputError):
    """A folder that no card can be made for: without a report, or with one of other files."""


@dataclass(frozen=True)
class Metric:
    """One measured figure of one model file.

    Attributes:
        kind: its name as the hub knows it where it does, as "accuracy".
        title: its name for people.
        file: the model file.
        value: as in report.json, or a share of it in per cent.
        unit: "%", "dB" or none.
        interval: 95 %, in the same unit; None where the report does not allow one.
    """

    kind: str
    title: str
    file: str
    value: float
    unit: str = ""
    interval: Interval | None = None


@dataclass(frozen=True)
class Facts:
    """The content of report.json, checked against the files beside it."""

    folder: Path
    report: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read the report of an export and compare the model files with it.

        Args:
            folder: what the export wrote.

        Raises:
            CardError: without a report, for one of another form, and for files that it does not describe.
        """
        path = folder / REPORT
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CardError(f"{path}: expected the report of an export, {error.strerror}") from error
        except ValueError as error:
            raise CardError(f"{path}: expected JSON, found something else; export again") from error
        facts = cls(folder, report)
        try:
            for field in _FIELDS:
                report[field]
            models = {each["file"]: each["sha256"] for each in report["models"].values()}
            tuple(facts.metrics)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CardError(
                f"{path}: expected the report of this version, found another; export again"
            ) from error
        for name, sha256 in models.items():
            file = folder / name
            if Path(name).name != name or not file.is_file():
                raise CardError(f"{file}: {REPORT} describes it, and it is not there; export again")
            if hash_file(file) != sha256:
                raise CardError(
                    f"{file}: expected the file that {REPORT} describes, found another; export again"
                )
        return facts

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """Each model file's entry, by variant, float32 first."""
        return dict(self.report["models"])

    @property
    def name(self) -> str:
        """The name of the model that was exported."""
        source = self.report["source"]
        return str(source.get("name") or source.get("checkpoint") or source.get("onnx") or "model")

    @property
    def embeds(self) -> bool:
        """True if the files give embeddings alone."""
        return "embeddings" in self.report and all("drift" not in each for each in self.models.values())

    @property
    def architecture(self) -> str:
        """The model in a few words, as far as the report knows it: "12 blocks of width 768"."""
        config = self.report["source"].get("config")
        if not config:
            return "Vision Transformer, from an ONNX file"
        height, width = config["image_size"]
        return (
            f"Vision Transformer, {config['depth']} blocks of width {config['width']}, patches of "
            f"{config['patch_size']} pixels, images of {height} x {width}"
        )

    @property
    def packages(self) -> Mapping[str, str]:
        """The packages that a device needs, in the versions that the figures were made with."""
        found = self.report["environment"]["packages"]
        return {name: found[name] for name in ("onnxruntime", "numpy", "pillow") if name in found}

    @property
    def data(self) -> Iterator[tuple[str, str]]:
        """Each set of images by its use: "training", "calibration", "evaluation"."""
        if trained := self.report["source"].get("trained_on"):
            yield "training", str(trained)
        if calibration := self.report.get("calibration", {}).get("source"):
            yield "calibration", f"{calibration}, {self.report['calibration']['images']} images"
        evaluation = self.report["evaluation"]
        yield "evaluation", f"{evaluation['source']}, {evaluation['images']} images"

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Every figure of every model file."""
        return tuple(self._list_metrics())

    def _list_metrics(self) -> Iterator[Metric]:
        images = int(self.report["evaluation"]["images"])
        for variant, model in self.models.items():
            file = str(model["file"])

            def share(kind: str, title: str, value: float, file: str = file) -> Metric:
                found = wilson_interval(round(value * images / 100), images)
                interval = Interval(100 * found.low, 100 * found.high)
                return Metric(kind, title, file, value, "%", interval)

            if model.get("top1") is not None:
                yield share("accuracy", "top-1", float(model["top1"]))
            for kind, title in (("map", "mAP over the labels"), ("f1", "F1 of all labels")):
                if model.get(kind) is not None:
                    yield Metric(kind, title, file, float(model[kind]), "%")
            if drift := model.get("drift"):
                yield share("agreement", "same label as float32", float(drift["agreement"]))
                yield Metric("sqnr", "SQNR of the logits against float32", file, float(drift["sqnr"]), "dB")
            if found := self.report.get("embeddings", {}).get(variant):
                interval = Interval(float(found["cosine_low"]), float(found["cosine_high"]))
                title = "mean cosine to float32's embedding"
                yield Metric("cosine", title, file, float(found["cosine"]), "", interval)
                if found["nearest"] is not None:  # too few images
                    title = "same nearest image as float32"
                    yield Metric("nearest", title, file, float(found["nearest"]), "%")
