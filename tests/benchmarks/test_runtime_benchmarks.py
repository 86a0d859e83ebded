"""The runtime's benchmarks measure what they say, on a tiny model and few images."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks import decode_drift, throughput
from export.pipeline import Options, export
from export.sources.from_torch import export_checkpoint
from runtime import Preprocess, find_images, read_metadata
from runtime.model_file.metadata import METADATA_KEY
from vit.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]


def blurred(folder, seed):
    folder.mkdir()
    colors = np.random.default_rng(seed).integers(0, 256, (4, 5, 7, 3), np.uint8)
    for number, grid in enumerate(colors):
        Image.fromarray(grid).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return blurred(tmp_path / "photos", 0)


@pytest.fixture
def model(bench, photos, tmp_path):
    spec = Preprocess(size=(32, 32))
    save_checkpoint(tmp_path / "run", model=bench.model, preprocess=spec, labels=tuple("abcd"))
    options = Options(calibration=blurred(tmp_path / "others", 1), evaluate=photos)
    export(export_checkpoint(load_checkpoint(tmp_path / "run")), tmp_path / "artifacts", options)
    return tmp_path / "artifacts" / "model.onnx"


def cells(text):
    """The rows of the tables that were printed, without the lines below their heads."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return [row for row in rows if not set("".join(row)) <= {"-"}]


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_more_noise_is_more_bytes_in_as_many_pixels(photos, tmp_path):
    for noise, quality in ((4, 92), (0, 75)):
        folder = tmp_path / f"{noise}"
        throughput.enlarge(photos, folder, 2, (640, 480), noise=noise, quality=quality)
        assert [size_of(path) for path in find_images(folder)] == [(640, 480)] * 2
    assert throughput.mean_megabytes(tmp_path / "4") > 3 * throughput.mean_megabytes(tmp_path / "0")


def test_decoding_is_compared_on_one_model_in_two_modes(model, photos, tmp_path, capsys):
    options = throughput.ThroughputOptions(model=model, photos=photos, large=2, rounds=1)
    throughput.compare_decoding(options, tmp_path, 0, 75)
    assert {read_metadata(tmp_path / f"{way}.onnx").preprocess.decode for way in ("full", "draft")} == {
        "full",
        "draft",
    }
    head, full, draft = cells(capsys.readouterr().out)
    assert re.fullmatch(r"12-megapixel JPEGs of \d\.\d MB", head[0])
    assert float(draft[1]) > float(full[1])
    rounding = 0.05 / float(full[1]) + 0.05 / float(draft[1]) + 0.005 / float(full[2])
    assert float(full[2]) == pytest.approx(float(draft[1]) / float(full[1]), rel=1.1 * rounding)


@pytest.mark.parametrize(
    "command", ["throughput MODEL PHOTOS", "cold_start MODEL --image PHOTOS", "decode_drift MODEL PHOTOS"]
)
def test_what_is_not_there_is_one_line_and_status_2(model, tmp_path, capsys, command):
    name, *words = command.split()
    main = importlib.import_module(f"benchmarks.{name}").main
    for absent, images, told in (
        (tmp_path / "no.onnx", tmp_path / "photos", "no.onnx: there is no such model file"),
        (model, tmp_path / "nowhere", "nowhere: expected an image or a folder of images, found none"),
    ):
        given = {"MODEL": str(absent), "PHOTOS": str(images)}
        assert main([given.get(word, word) for word in words]) == 2
        assert told in capsys.readouterr().err


def test_decode_drift_compares_what_the_model_says(model, photos, tmp_path, capsys, monkeypatch):
    words = [str(model), str(photos), "--count", "3", "--size", "640", "480"]
    assert decode_drift.main(words) == 0
    _, row = cells(capsys.readouterr().out)
    assert row[:2] == ["640 x 480", "3"]
    assert float(row[3].removesuffix(" dB")) > 15
    assert 0 < float(row[4].removesuffix(" of 255")) < 5
    # The images are prepared as the model asks, and its target is known.
    crop = Preprocess(size=(32, 32), resize="crop", resize_to=96, interpolation="bicubic")
    changed = replace(read_metadata(model), preprocess=crop, target="full-range")
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, {METADATA_KEY: changed.to_json()})
    onnx.save(proto, tmp_path / "crop.onnx")
    seen, targets = set(), []
    call, open_session = Preprocess.__call__, decode_drift.open_session
    monkeypatch.setattr(Preprocess, "__call__", lambda self, *a, **k: seen.add(self) or call(self, *a, **k))
    monkeypatch.setattr(
        decode_drift, "open_session", lambda *a, **k: targets.append(k["target"]) or open_session(*a, **k)
    )
    words = [str(tmp_path / "crop.onnx"), str(photos), "--count", "1", "--size", "640", "480"]
    assert decode_drift.main(words) == 0
    assert "640 x 480" in capsys.readouterr().out
    assert seen == {replace(crop, decode=way) for way in ("full", "draft")}
    assert targets == ["full-range"]


@pytest.mark.slow
def test_the_peers_run(model, photos, tmp_path, capsys):
    options = throughput.ThroughputOptions(model=model, photos=photos, repeat=2, rounds=1)
    throughput.compare_ways(options, tmp_path)
    rows = cells(capsys.readouterr().out)
    assert len(rows) == 5
    assert all(float(row[1]) > 0 for row in rows[1:])
    image = str(next(find_images(photos)))
    # From a process of its own: a child's peak memory starts at that of the process it was forked from.
    command = [
        sys.executable,
        "-m",
        "benchmarks.cold_start",
        str(model),
        "--image",
        image,
        "--rounds",
        "1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ours, plain, pipeline = cells(done.stdout)[1:]
    assert float(ours[1]) < min(float(plain[1]), float(pipeline[1]))
    assert float(ours[3]) < min(float(plain[3]), float(pipeline[3]))
