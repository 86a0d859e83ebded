"""Section of the report about a simulated NPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.report.npu_simulation import NOTE, NpuSimulation, SimulatedDrift
from runtime.placement import DevicePart, Placement
from tests.support.html_page import Page

PART = DevicePart(device="qnn", nodes=120, parts=1, share=1.0, operators={"Gemm": 120})
DRIFT = SimulatedDrift(
    sqnr=38.5,
    cpu_sqnr=40.1,
    between_sqnr=41.2,
    same_label=19,
    placement=Placement(parts=(PART,), unlisted=0.0),
)
SECTION = NpuSimulation(obstacle=None, images=20, minutes=5.0, seconds=200.0, files={"float16": DRIFT})
WHERE = "qnn 120 nodes in 1 part, 100.0 % of the multiply-adds"


def test_every_figure_says_that_it_is_simulated(results: Any, put: Any, tmp_path: Path) -> None:
    made = put(results(variants=("float16",)), SECTION)
    page = Page(made.to_html())
    assert page.flaws() == []
    start = page.text.index("In a simulated NPU")
    text = page.text[start : page.text.index("Qualcomm", start) + 700]
    assert "simulator of the NPU in a snapdragon-8-gen-3, on 20 images of those above" in text
    assert "its times say nothing about an NPU, so none are shown" in text
    for row in (
        "Same label as float32 19 of 20",
        "Signal to noise, simulated 38.5 dB",
        "The same on this CPU 40.1 dB",
        "Between the two 41.2 dB",
        f"Where it ran {WHERE}",
    ):
        assert row in text
    assert SECTION.lines(made, tmp_path) == [
        f"simulated NPU (snapdragon-8-gen-3), 20 images ({NOTE}):",
        "  float16: same label as float32 on 19, SQNR 38.5 dB (on this CPU 40.1 dB, between the two "
        f"41.2 dB); {WHERE}",
    ]
    document = made.to_dict()["npu"]
    assert (document["simulated_chip"], document["images"]) == ("snapdragon-8-gen-3", 20)
    assert document["models"]["float16"] == DRIFT.to_dict()


def test_the_model_file_holds_its_drift(results: Any) -> None:
    chosen = {"simulated_chip": "snapdragon-8-gen-3", "images": 20}
    assert SECTION.metadata("float16") == {"npu": chosen | {"sqnr": 38.5, "same_label": 19}}
    assert SECTION.metadata("float32") == {}


def test_what_was_not_simulated_is_said(results: Any, put: Any, tmp_path: Path) -> None:
    obstacle = NpuSimulation(obstacle="no qnn here")
    made = put(results(variants=("float16",)), obstacle)
    assert "Not simulated: no qnn here." in Page(made.to_html()).text
    assert obstacle.lines(made, tmp_path)[0].startswith("NPU: not simulated (no qnn here); the figures ")
    assert made.to_dict()["npu"]["obstacle"] == "no qnn here"
    failed = replace(SECTION, files={}, failures={"float16": "no memory"})
    made = put(results(variants=("float16",)), failed)
    assert "FP16 cannot run there: no memory" in Page(made.to_html()).text
    assert failed.lines(made, tmp_path)[1] == "  float16: cannot run there: no memory"
    assert made.to_dict()["npu"]["failures"] == {"float16": "no memory"}


def test_a_model_without_classes_has_no_labels(results: Any, put: Any) -> None:
    section = replace(SECTION, files={"float16": replace(DRIFT, same_label=None)})
    assert section.describe("float16").startswith("SQNR 38.5 dB")
