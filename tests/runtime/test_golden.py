"""The bytes that preprocessing gives are those of golden.json, with every version of Pillow."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import tomllib
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError
from runtime.images.preprocess import Preprocess
from runtime.images.resize import resize, size_between

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = json.loads((HERE / "golden.json").read_text())


def load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()


def named(case: dict[str, Any]) -> str:
    height, width = case["image"]
    return f"{height}x{width}-{case['resize']}-{case['interpolation']}{'-alpha' if case['alpha'] else ''}"


def spec_of(case: dict[str, Any]) -> Preprocess:
    fields = {name: case[name] for name in ("resize", "resize_to", "interpolation")}
    fields["resize_to"] = (
        tuple(case["resize_to"]) if isinstance(case["resize_to"], list) else case["resize_to"]
    )
    return Preprocess(size=tuple(case["size"]), **fields)


def golden_bytes(case: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(case["pixels"]), np.uint8).reshape(*case["size"], 3)


def test_the_golden_file_is_what_its_script_writes() -> None:
    assert (HERE / "golden.json").read_text() == MAKER.main()
    assert len(GOLDEN) >= 40


@pytest.mark.parametrize("case", GOLDEN, ids=named)
def test_the_bytes_are_golden(case: dict[str, Any]) -> None:
    image = MAKER.image_of(*case["image"])
    if case["alpha"]:
        image = np.concatenate([image, MAKER.alpha_of(*case["image"])], axis=2)
    assert np.array_equal(spec_of(case)(image), golden_bytes(case))


# A box has edges: where one meets a sample's center, the order of scaling and cutting decides.
@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if (case["resize"], case["interpolation"]) != ("crop", "box")], ids=named
)
def test_the_golden_bytes_are_the_textbook_rounded(case: dict[str, Any]) -> None:
    difference = np.abs(golden_bytes(case) - MAKER.textbook(MAKER.rgb_of(case), case))
    assert difference.max() < 1.5  # each of the two passes rounds
    if min(case["image"]) > 1:  # else too few different values for a mean
        assert difference.mean() < 0.42  # about a quarter for each rounding


def test_one_call_of_pillow_13_would_not_give_them() -> None:
    """The cases do tell the two orders apart."""
    turned = 0
    for case in GOLDEN:
        rows, columns = case["size"]
        if case["resize"] == "stretch" and case["interpolation"] != "nearest":
            image = Image.fromarray(MAKER.rgb_of(case)).transpose(Image.Transpose.TRANSPOSE)
            method = Image.Resampling[case["interpolation"].upper()]
            rows_first = resize(image, (rows, columns), method, (0, 0, *image.size))
            upright = np.asarray(rows_first.transpose(Image.Transpose.TRANSPOSE))
            turned += not np.array_equal(upright, golden_bytes(case))
    assert turned >= 10


def test_a_draft_is_resized_the_same_way() -> None:
    file = io.BytesIO()
    Image.fromarray(MAKER.image_of(300, 500)).save(file, "JPEG", quality=95)
    case = dict(size=(14, 14), resize="stretch", resize_to=None, interpolation="bicubic")
    with Image.open(file) as image:
        image.draft(None, (28, 28))
        assert image.size == (63, 38)
        expected = MAKER.preprocess(np.asarray(image), case)
    assert np.array_equal(Preprocess(size=(14, 14), interpolation="bicubic")(file.getvalue()), expected)


def test_a_box_far_down_reads_few_rows() -> None:
    before, after, box = (2, 400_000), (224, 224), (0.0, 200_000.25, 2.0, 200_002.25)
    width, height = size_between(before, after, Image.Resampling.BICUBIC, box)
    assert (width, height) == (224, 9)
    rows = np.arange(400_000, dtype=np.uint32)[:, None] * np.array([3, 7]) % 251
    image = Image.fromarray(np.stack([rows.astype(np.uint8)] * 3, axis=2))
    found = np.asarray(resize(image, after, Image.Resampling.BICUBIC, box))
    across = MAKER.one_pass(
        MAKER.weights(2, 224, "bicubic"), np.asarray(image)[199_900:200_100].transpose(1, 0, 2)
    )
    # 200,000.25 is a 32-bit float: nothing is lost when 199,900 rows are left out.
    down = MAKER.weights(200, 224, "bicubic", (100.25, 102.25))
    assert np.array_equal(found, MAKER.one_pass(down, across.transpose(1, 0, 2)))


def test_rows_that_would_take_gigabytes_are_refused() -> None:
    """1 x 1,000,000 pixels are 4 MB, and 224 columns of as many rows are 896."""
    with pytest.raises(ImageError, match="224 x 1000000 pixels between its two passes") as caught:
        Preprocess()(Image.new("RGB", (1, 1_000_000)))
    assert "89,478,485" in str(caught.value)
    crop = Preprocess(resize="crop", resize_to=256)  # sees a few rows only
    assert crop(Image.new("RGB", (1, 1_000_000), "white")).min() == 255
    small = Preprocess(size=(224, 224))(Image.new("RGB", (50, 50), "white"), max_pixels=2_500)
    assert small.min() == 255


def pillow_versions() -> list[str]:
    """The oldest version that pyproject allows, and the one that constraints.txt installs."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (lowest,) = (found[1] for each in dependencies if (found := re.fullmatch(r"pillow>=([\d.]+)", each)))
    highest = re.search(r"(?m)^pillow==(.+)$", (ROOT / "constraints.txt").read_text())
    assert highest is not None
    return [lowest, highest[1]]


@pytest.mark.slow
@pytest.mark.parametrize("version", pillow_versions())
def test_the_bytes_are_golden_with_the_oldest_and_the_newest_pillow(version: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        f"pillow=={version}.*",
        "numpy",
        "pytest",
        "pytest-timeout",
    ]
    subprocess.run(install, check=True, timeout=300)
    checked = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(Path(__file__))]
    done = subprocess.run(checked, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    reported = subprocess.check_output([python, "-c", "import PIL; print(PIL.__version__)"], text=True)
    assert reported.startswith(version)
