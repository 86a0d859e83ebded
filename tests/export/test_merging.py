"""Token merging through the export: never unasked, told in every report, refused where it does not fit."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.__main__ import main
from export.report.merging_effect import MergedImage, paint_groups
from export.report.provenance import say_no_merging
from runtime import read_metadata
from tools.expected_drift import random_checkpoint

Export = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits that learned nothing: 16 patches, 2 blocks, of which the first can merge."""
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for digit in range(4):
        (folder / str(digit)).mkdir()
        for index in range(5):
            pixels = random.integers(0, 256, (5, 5, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(folder / str(digit) / f"{index}.png")
    return folder


@pytest.fixture
def export(checkpoint: Path, photos: Path, tmp_path: Path) -> Export:
    def run(*words: str, out: str = "out") -> int:
        common = [str(checkpoint), "--quantize", "--calibration", str(photos), "--threads", "1"]
        return main([*common, "--out", str(tmp_path / out), *words])

    return run


def test_a_number_of_tokens_is_merged_and_told_everywhere(export, tmp_path, capsys) -> None:
    assert export("--merge-tokens", "3") == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^token merging, an approximation: 3 in blocks.0, 17 → 14 tokens; "
        r"against dense int8: SQNR [\d.]+ → [\d.]+ dB, agreement [\d.]+ → [\d.]+ %, "
        r"top-1 [\d.]+ → [\d.]+ %, [\d.]+ → [\d.]+ ms, .*; \d+ of 8 labels changed$",
        told,
        re.M,
    )
    out = tmp_path / "out"
    plan = json.loads((out / "plan.json").read_text())
    assert plan["merging"] == {"blocks.0": 3}
    report = json.loads((out / "report.json").read_text())
    merging = report["merging"]
    assert merging["tokens_left"] == {"blocks.0": 14}
    assert merging["merged_int8"]["drift"] == report["models"]["int8"]["drift"]
    assert merging["merged_int8"]["drift"]["sqnr"] < merging["dense_int8"]["drift"]["sqnr"]
    page = (out / "report.html").read_text()
    assert "Token merging" in page
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]*merged patches colored">', page)
    assert len(shown) == 6
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]))).size == (192, 192)
    measured = read_metadata(out / "model.int8.onnx").measured
    assert measured["merging"]["schedule"] == plan["merging"]
    assert measured["merging"]["dense_drift"] == merging["dense_int8"]["drift"]
    dense = read_metadata(out / "model.onnx").measured["multiply_adds"]
    assert measured["multiply_adds"]["blocks.0.attention.query"] == dense["blocks.0.attention.query"]
    assert measured["multiply_adds"]["blocks.1.attention.key"] * 17 == dense["blocks.1.attention.key"] * 14

    # The plan passed back is the same file.
    assert export("--plan", str(out / "plan.json"), out="again") == 0
    again = (tmp_path / "again" / "model.int8.onnx").read_bytes()
    assert _graph(again) == _graph((out / "model.int8.onnx").read_bytes())
    assert (tmp_path / "again" / "plan.json").read_text() == (out / "plan.json").read_text()


def test_a_dense_export_says_nothing_of_merging(export, tmp_path, capsys) -> None:
    assert export() == 0
    assert "merging" not in capsys.readouterr().out
    out = tmp_path / "out"
    assert "merging" not in (out / "plan.json").read_text() + (out / "report.json").read_text()
    assert "Token merging" not in (out / "report.html").read_text()
    assert "merging" not in read_metadata(out / "model.int8.onnx").measured


def test_a_search_keeps_its_floor_or_merges_nothing(export, tmp_path, capsys) -> None:
    assert export("--merge-tokens", "--min-sqnr", "1") == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    tried = report["search"]["merging"]
    assert tried["most"] == 8
    assert tried["merged_per_block"] == 8 or any(trial["misses"] for trial in tried["trials"])
    assert ("token merging, an approximation" in told) == bool(tried["merged_per_block"])

    assert export("--merge-tokens", out="floor") == 0
    trials = json.loads((tmp_path / "floor" / "report.json").read_text())["search"]["merging"]["trials"]
    assert trials
    for trial in trials:
        assert bool(trial["misses"]) == (trial["drift"]["sqnr"] < 20)  # the default floor


def test_why_nothing_merges_is_told() -> None:
    trials = [{"merged": 4, "misses": ["SQNR is 3.0 dB"]}, {"merged": 1, "misses": ["SQNR is 9.0 dB"]}]
    assert say_no_merging({"trials": trials}) == (
        "token merging: none, 1 per block is too much: SQNR is 9.0 dB"
    )
    assert "dense int8 itself misses" in say_no_merging({"trials": []})


def test_what_does_not_fit_is_refused(export, tmp_path, capsys) -> None:
    assert export("--merge-tokens", "9") == 2
    assert "merging: blocks.0 has 16 patches left and can merge 1 to 8 of them" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        export("--merge-tokens", "many")
    assert "write --merge-tokens behind the checkpoint" in capsys.readouterr().err
    assert export("--merge-tokens", "2", "--min-sqnr", "100") == 1
    told = capsys.readouterr().err
    assert re.search(r"(minimum: 100 dB)", told)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["plan-to-train.json"]
    assert export("--merge-tokens", "2", "--plan", "plan.json") == 2
    assert 'in a plan, edit its "linears" or its "merging"' in capsys.readouterr().err


def test_merged_patches_are_painted_and_others_are_not() -> None:
    groups = np.array([[0, 0], [1, 2]])
    pixels = np.full((16, 16, 3), 100, np.uint8)
    image = paint_groups(MergedImage(0, pixels, groups, changed=False))
    side = image.shape[0] // 2
    assert image.shape == (176, 176, 3)
    inner = image[10 : side - 10]
    assert len(np.unique(inner[:, 10:-10].reshape(-1, 3), axis=0)) == 1  # one color over both, no border
    assert (inner != 100).any()
    assert (image[side + 10 : -10, 10 : side - 10] == 100).all()
    assert (image[side, 10:-10] == 255).all()


def _graph(data: bytes) -> bytes:
    """The model without its metadata, which names the plan's origin."""
    import onnx

    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    graph: bytes = model.SerializeToString()
    return graph
