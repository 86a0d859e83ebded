"""The model card: Markdown with the front matter that the Hugging Face hub reads (its "Model Cards")."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from export.card.facts import Facts, Metric
from export.report.number_formats import DASH, NAMES, megabytes, milliseconds, percent
from export.report.preprocessing import describe_steps
from runtime.images.preprocess import Preprocess

_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")


def write_model_card(facts: Facts, *, license_name: str | None = None) -> str:
    """Return the text of README.md.

    Args:
        facts: of the exported model.
        license_name: identifier of the model's license as the hub writes it, such as "apache-2.0"; None
            leaves it out, and the card says that it is not known.
    """
    front = "\n".join(f"{key}: {json.dumps(each)}" for key, each in _make_front(facts, license_name).items())
    report, license_text = facts.report, license_name or "not stated by whoever made this card"
    warnings = [f"- {_escape(each)}" for each in report["warnings"]] or ["- none"]
    steps = describe_steps(Preprocess.from_dict(report["preprocess"]))
    return "\n".join(
        [
            f"---\n{front}\n---\n",
            f"# {_escape(facts.name)}\n",
            f"{_escape(facts.architecture)}, as ONNX files of standard operators. Made by",
            f"{_escape(report['producer'])} on {_escape(report['made']['date'])}. License: {license_text}.\n",
            "## Files\n",
            *_list_files(facts),
            "\n## What was measured\n",
            *_list_metrics(facts),
            "",
            f"Limits: {_escape(report['verdict']['text'])}.\n",
            "## Warnings\n",
            *warnings,
            "\n## Data\n",
            *(f"- {use}: {_escape(name)}" for use, name in facts.data),
            "\n## Preprocessing\n",
            *(f"{number}. {_escape(step)}" for number, step in enumerate(steps, start=1)),
            "\n## Use\n",
            f"```\nvit-edge run {facts.folder.name} photo.jpg\n```",
            "\n## How it was made\n",
            f"```\n{report['made']['command']}\n```",
            "",
        ]
    )


def _make_front(facts: Facts, license_name: str | None) -> dict[str, Any]:
    """Return the fields of the front matter: JSON values, which YAML reads as they are."""
    task = "image-feature-extraction" if facts.embeds else "image-classification"
    tags = ["onnx", "vision-transformer", *(NAMES[each].lower() for each in facts.models)]
    front: dict[str, Any] = {"library_name": "vit-edge", "pipeline_tag": task, "tags": tags}
    if license_name is not None:
        front["license"] = license_name
    data = {"type": "images", "name": facts.report["evaluation"]["source"]}
    found = [
        {"type": each.kind, "name": f"{each.title}, {each.file}", "value": each.value}
        for each in facts.metrics
    ]
    if found:
        results = [{"task": {"type": task}, "dataset": data, "metrics": found}]
        front["model-index"] = [{"name": facts.name, "results": results}]
    return front


def _list_files(facts: Facts) -> Iterator[str]:
    yield from (
        "| file | numbers | size | one image on one CPU thread, median | SHA-256 |",
        "|---|---|---|---|---|",
    )
    for variant, model in facts.models.items():
        time = milliseconds(model["latency_ms"]["median"])
        size = megabytes(model["bytes"])
        yield f"| {model['file']} | {NAMES[variant]} | {size} | {time} | `{model['sha256']}` |"
    environment = facts.report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    yield f"\nTimes were taken on {_escape(environment['cpu'])} ({environment['cpu_kind']}), with {packages}."


def _list_metrics(facts: Facts) -> Iterator[str]:
    evaluation = facts.report["evaluation"]
    yield f"On {evaluation['images']} images of {_escape(evaluation['source'])}; 95 % intervals in brackets."
    yield from ("", "| file | figure | value |", "|---|---|---|")
    for each in facts.metrics:
        yield f"| {each.file} | {each.title} | {format_metric(each)} |"
    yield f"\nThe intervals hold for images like these {evaluation['images']}, and say nothing of others."


def format_metric(metric: Metric) -> str:
    """Return a figure with its unit and its interval: "97.33 % (93.3–99.0)".

    Args:
        metric: the figure.
    """
    digits = 4 if not metric.unit else 1
    value = (
        percent(metric.value) if metric.unit == "%" else f"{metric.value:.{digits}f} {metric.unit}".rstrip()
    )
    if metric.interval is None:
        return value
    return f"{value} ({metric.interval.low:.{digits}f}{DASH}{metric.interval.high:.{digits}f})"


def _escape(text: object) -> str:
    """Return words of a report as Markdown that shows them as they are, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
