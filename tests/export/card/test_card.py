"""The papers of an export: every figure is one of report.json, and other programs can read both files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from export.card.components import write_components
from export.card.facts import CardError, Facts
from export.card.model_card import format_metric, write_model_card
from vit_edge.__main__ import main


@pytest.fixture
def exported(digits_artifacts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_artifacts, tmp_path / "digits"))


def change_report(folder: Path, **fields: object) -> dict[str, object]:
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report.update(fields)
    path.write_text(json.dumps(report), encoding="utf-8")
    return dict(report)


def validate(text: str) -> object:
    """Return the objection of the validator of CycloneDX; None for none."""
    schema = pytest.importorskip("cyclonedx.schema", reason="needs cyclonedx-python-lib[validation]")
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text)


def test_command_writes_both_and_says_that_the_license_is_open(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(exported)]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(exported / "README.md"), str(exported / "model.cdx.json")]
    assert "--license" in said.err
    assert "license:" not in (exported / "README.md").read_text(encoding="utf-8")
    assert main(["card", str(exported), "--license", "apache-2.0"]) == 0
    assert 'license: "apache-2.0"' in (exported / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("license_name", [None, "apache-2.0", "our own, ask us"])
def test_components_are_valid_cyclonedx(exported: Path, license_name: str | None) -> None:
    text = write_components(Facts.read(exported), license_name=license_name)
    assert validate(text) is None
    # The validator does look.
    assert validate(text.replace('"machine-learning-model"', '"model"')) is not None


def test_components_are_the_same_for_the_same_files(exported: Path) -> None:
    facts = Facts.read(exported)
    assert write_components(facts) == write_components(facts)


def test_every_figure_of_the_components_is_one_of_the_report(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    document = json.loads(write_components(Facts.read(exported)))
    found = 0
    for component in document["components"]:
        if component["type"] != "machine-learning-model":
            continue
        model = next(each for each in report["models"].values() if each["file"] == component["name"])
        assert component["hashes"][0]["content"] == model["sha256"]
        values = {model.get("top1"), model["latency_ms"]["median"], *model.get("drift", {}).values()}
        for metric in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]:
            assert float(metric["value"]) in values
            found += 1
    assert found == 2 + 4  # top-1 and latency of float32; these, agreement and SQNR of INT8


def test_figures_of_the_card_are_those_of_the_report(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    facts = Facts.read(exported)
    card = write_model_card(facts)
    front = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    metrics = json.loads(front["model-index"])[0]["results"][0]["metrics"]
    int8 = report["models"]["int8"]
    expected = [
        report["models"]["float32"]["top1"],
        int8["top1"],
        int8["drift"]["agreement"],
        int8["drift"]["sqnr"],
    ]
    assert [each["value"] for each in metrics] == expected
    for metric in facts.metrics:
        assert f"| {metric.file} | {metric.title} | {format_metric(metric)} |" in card
    for model in report["models"].values():
        assert model["sha256"] in card


def test_warnings_and_verdict_are_shown_as_they_are(exported: Path) -> None:
    report = change_report(exported, warnings=["a | b <img src=x> `c`\n# no heading"])
    card = write_model_card(Facts.read(exported))
    assert r"- a \| b \<img src=x\> \`c\` # no heading" in card
    assert str(report["verdict"]["text"]) in card  # type: ignore[index]
    components = json.loads(write_components(Facts.read(exported)))["components"]
    limits = components[0]["modelCard"]["considerations"]["technicalLimitations"]
    assert report["warnings"][0] in limits  # type: ignore[index]


def test_embeddings_have_their_own_figures(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    for model in report["models"].values():
        model.pop("drift", None)
        model.pop("top1", None)
    figures = {"cosine": 0.998, "cosine_low": 0.997, "cosine_high": 0.999, "nearest": None}
    change_report(exported, models=report["models"], embeddings={"int8": figures})
    facts = Facts.read(exported)
    assert [each.value for each in facts.metrics] == [0.998]
    assert 'pipeline_tag: "image-feature-extraction"' in write_model_card(facts)
    assert validate(write_components(facts)) is None


def test_several_labels_per_image_have_their_own_figures(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    for model in report["models"].values():
        model.update(map=80.8, f1=70.4)
        del model["top1"]
    change_report(exported, models=report["models"])
    facts = Facts.read(exported)
    assert [(each.kind, each.value) for each in facts.metrics][:2] == [("map", 80.8), ("f1", 70.4)]
    assert "| model.int8.onnx | mAP over the labels | 80.80 % |" in write_model_card(facts)
    assert validate(write_components(facts)) is None


def test_a_changed_model_is_refused(exported: Path) -> None:
    path = exported / "model.int8.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CardError, match=r"model\.int8\.onnx: expected the file that report\.json describes"):
        Facts.read(exported)
    path.unlink()
    with pytest.raises(CardError, match="is not there"):
        Facts.read(exported)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected the report of an export"),
        ("{", "expected JSON"),
        ("[]", "expected the report of this version"),
        ("{}", "expected the report of this version"),
    ],
)
def test_other_reports_are_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(CardError, match=re.escape(message)) as raised:
        Facts.read(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_file_elsewhere_is_not_read(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text(encoding="utf-8"))
    report["models"]["int8"]["file"] = "../report.json"
    change_report(exported, models=report["models"])
    with pytest.raises(CardError, match="is not there"):
        Facts.read(exported)
