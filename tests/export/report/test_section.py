"""Sections: one list, walked by report.json, report.html and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.report import SECTIONS
from export.report.section import Results, Section


@dataclass(frozen=True)
class Brightness(Section):
    """A figure that only this test has."""

    mean: float = 0.5
    template = "usage.j2"

    def to_dict(self, results: Results) -> Mapping[str, Any]:
        return {"brightness": self.mean, "models": {"int8": {"brightness": self.mean}}}

    def lines(self, results: Results, out: Path) -> Sequence[str]:
        return [f"brightness: {self.mean}"]

    def context(self, results: Results) -> Mapping[str, Any]:
        return {"file": "bright", "photo": "", "beside": "", "python": "", "shell": ""}


def test_a_section_is_shown_everywhere_once_it_is_among_the_sections(results) -> None:
    some = replace(results(), sections=(*results().sections, Brightness()))
    document = some.to_dict()
    assert document["brightness"] == document["models"]["int8"]["brightness"] == 0.5
    assert document["models"]["int8"]["drift"]["images"] == 60  # and the fields of other sections stay
    assert "brightness: 0.5" in some.to_text(Path("out")).splitlines()
    assert "In the folder of <code>bright</code>" in some.to_html()


def test_each_module_of_a_section_has_a_template_of_its_name(root: Path) -> None:
    folder = root / "export" / "report"
    templates = {path.name for path in folder.glob("*.j2")} - {"report.html.j2"}
    assert {kind.template for kind in SECTIONS} == templates
    modules = {kind.__module__.rpartition(".")[2] for kind in SECTIONS}
    assert {f"{module}.j2" for module in modules} <= templates


def test_the_terminal_ends_with_the_conclusion(results) -> None:
    lines = results().to_text(Path("out")).splitlines()
    assert [line.split(":")[0] for line in lines[-3:]] == ["limits", "next", "report"]
