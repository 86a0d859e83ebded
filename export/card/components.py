"""The list of components: CycloneDX 1.6 (ECMA-424) in JSON, with a `modelCard`, as an ML-BOM.

Models are named by their SHA-256, packages by purl with the versions that the figures were made with. The
libraries inside the wheels are not listed: their makers publish those.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from export.card.facts import Facts, Metric

VERSION = "1.6"
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"


def write_components(facts: Facts, *, license_name: str | None = None) -> str:
    """Return the text of model.cdx.json.

    The same files give the same text: its serial number comes from their digests, its time is the export's.

    Args:
        facts: of the exported model.
        license_name: SPDX identifier of the model's license, or its name; None leaves it out.
    """
    producer, _, version = str(facts.report["producer"]).partition(" ")
    tool = {"type": "application", "name": producer, **({"version": version} if version else {})}
    models = [_describe_model(facts, variant, license_name) for variant in facts.models]
    packages = [_describe_package(name, version) for name, version in facts.packages.items()]
    data = [
        {"type": "data", "bom-ref": f"data:{use}", "name": name, "data": [{"type": "dataset", "name": name}]}
        for use, name in facts.data
    ]
    digests = ":".join(str(model["sha256"]) for model in facts.models.values())
    made = datetime.strptime(facts.report["made"]["date"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    needed = [each["bom-ref"] for each in packages]
    document = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digests)}",
        "version": 1,
        "metadata": {
            "timestamp": made.isoformat(),
            "tools": {"components": [tool]},
            "component": {"type": "machine-learning-model", "bom-ref": "model", "name": facts.name},
        },
        "components": [*models, *packages, *data],
        "dependencies": [
            {"ref": "model", "dependsOn": [each["bom-ref"] for each in models]},
            *({"ref": each["bom-ref"], "dependsOn": needed} for each in models),
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _describe_model(facts: Facts, variant: str, license_name: str | None) -> dict[str, Any]:
    model, report = facts.models[variant], facts.report
    metrics = [_describe_metric(each) for each in facts.metrics if each.file == model["file"]]
    latency = {
        "type": "latency, median of one image on one CPU thread, ms",
        "slice": report["environment"]["cpu"],
    }
    metrics.append({**latency, "value": str(model["latency_ms"]["median"])})
    output = "embedding, float32 [features]" if facts.embeds else "logits, float32 [classes]"
    size = " x ".join(map(str, report["preprocess"]["size"]))
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{variant}",
        "name": model["file"],
        "hashes": [{"alg": "SHA-256", "content": model["sha256"]}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "self-supervised" if facts.embeds else "supervised"},
                "task": "image feature extraction" if facts.embeds else "image classification",
                "architectureFamily": "vision transformer",
                "modelArchitecture": facts.architecture,
                "datasets": [{"ref": f"data:{use}"} for use, _ in facts.data],
                "inputs": [{"format": f"RGB pixels, uint8, {size}"}],
                "outputs": [{"format": output}],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
            "considerations": {
                "technicalLimitations": [
                    f"limits of the export: {report['verdict']['text']}",
                    *report["warnings"],
                ]
            },
        },
    }
    if license_name is not None:
        component["licenses"] = [{"license": {"name": license_name}}]
    return component


def _describe_metric(metric: Metric) -> dict[str, Any]:
    unit = f", {metric.unit}" if metric.unit else ""
    found: dict[str, Any] = {"type": f"{metric.kind}: {metric.title}{unit}", "value": str(metric.value)}
    if metric.interval is not None:
        low, high = metric.interval.low, metric.interval.high
        found["confidenceInterval"] = {"lowerBound": str(low), "upperBound": str(high)}
    return found


def _describe_package(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return component
    fields = installed.metadata.json
    license_text = fields.get("license_expression") or fields.get("license")
    # Only of the version that was measured; an old wheel may hold the whole text in this field.
    if installed.version == version and license_text and len(license_text) < 100:
        component["licenses"] = [{"license": {"name": license_text}}]
    return component
