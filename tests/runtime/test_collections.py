"""Images that others made to trip readers up, and turned photos; `make borrow` fetches both."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier, Preprocess

ROOT = Path(__file__).parents[2]
UNCLEAR = re.compile(
    r"Errno|decoder error|\w(Error|Exception)\b|0x[0-9a-f]+|^.{0,12}$|\n"
    r"|overrun|driver|unpack_from|b'\\|Plugin|DOS"
)
# First bytes of formats that Pillow reads: a file that begins so is never said to be no image.
FORMATS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|8BPS|.{4}ftyp|\0\0\0\x0cjP|\xffO\xffQ", re.S
)
NO_IMAGE = "it is no image in a format that Pillow reads"
SUMMARY = re.compile(r"[\d,]+ images in |\s+[\d,]+  |   failed  |      and  ")
WITH_PEAK = """
import pathlib, resource, subprocess, sys
subprocess.run(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""
STORED_FOR = {  # what a camera stores for each orientation: the inverse of how it is to be shown
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def collection(name: str) -> Path:
    """A folder of images that others made; where it is not there the test is skipped, and says so."""
    folder = ROOT / "data" / name
    return folder if folder.is_dir() else pytest.skip(f"needs data/{name}: make borrow")


def test_every_image_of_pillows_tests_gives_a_label_or_a_clear_failure(model: Path, tmp_path: Path) -> None:
    folder = collection("pillow-images")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    peak = tmp_path / "peak"
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, peak, sys.executable, "-m", "runtime", model, "-", "--null"],
        input=b"\0".join(map(os.fsencode, files)),
        capture_output=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["path"] for record in records] == list(map(str, files))
    assert all((record["label"] is None) != (record["error"] is None) for record in records)
    labeled = sum(record["error"] is None for record in records)
    mebibytes = int(peak.read_text()) / 2 ** (20 if sys.platform == "darwin" else 10)
    print(f"\n{labeled} labels, {len(records) - labeled} failures, at most {mebibytes:.0f} MiB")
    assert labeled > len(records) / 2
    assert mebibytes < 1024
    assert [text for record in records if (text := record["error"]) and UNCLEAR.search(text)] == []
    refused = [Path(record["path"]) for record in records if record["error"] == NO_IMAGE]
    assert len(refused) > 10
    assert [path for path in refused if FORMATS.match(path.read_bytes()[:16])] == []
    # The summary is all that the terminal shows: no warning of Pillow's, and none of the libraries below it.
    assert [line for line in done.stderr.decode().splitlines() if not SUMMARY.match(line)] == []


def generated() -> list[bytes]:
    """One photo as JPEG, with each orientation; large enough to be decoded at a fraction of its size."""
    rng = np.random.default_rng(0)
    colors = np.array([250, 120, 20]) * rng.uniform(0.3, 1, (6, 8, 1))
    upright = Image.fromarray(colors.astype(np.uint8)).resize((960, 720), Image.Resampling.BICUBIC)
    photos = []
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        method = STORED_FOR.get(orientation)
        stored = upright if method is None else upright.transpose(method)
        stored.save(file, "JPEG", exif=exif, quality=95)
        photos.append(file.getvalue())
    return photos


def downloaded(kind: str) -> list[bytes]:
    folder = collection("exif-photos")
    return [(folder / f"{kind}_{orientation}.jpg").read_bytes() for orientation in range(1, 9)]


@pytest.mark.parametrize("photo", ["generated", "Landscape", "Portrait"])
def test_eight_orientations_of_a_photo_give_one_answer(model: Path, photo: str) -> None:
    photos = generated() if photo == "generated" else downloaded(photo)
    seen, ignored = (
        np.stack([Preprocess(size=(32, 32), exif=exif)(data) for data in photos]).astype(int)
        for exif in (True, False)
    )
    assert np.abs(seen - seen[0]).mean(axis=(1, 2, 3)).max() < 1  # of 255: each was compressed by itself
    assert np.abs(ignored - ignored[0]).mean(axis=(1, 2, 3))[1:].min() > 10
    predictions = [result.prediction for result in Classifier(model).stream(photos)]
    assert len({prediction and prediction.label for prediction in predictions}) == 1
    scores = [prediction.score for prediction in predictions if prediction]
    assert scores == pytest.approx([scores[0]] * 8, abs=0.01)
