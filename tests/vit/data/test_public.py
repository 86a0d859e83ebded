"""Names that may leave a machine: those without the folders above them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from vit.data.datasets import Images
from vit.data.public import public_command, public_name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory inside the home of somebody."""
    folder = tmp_path / "home" / "somebody" / "work"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    monkeypatch.chdir(folder)
    return folder


def test_names_inside_the_working_directory_are_relative_to_it(here: Path) -> None:
    assert public_name(str(here / "runs" / "flowers" / "model.safetensors")) == str(
        Path("runs", "flowers", "model.safetensors")
    )
    assert public_name(str(here)) == "work"
    assert public_name("runs/flowers") == "runs/flowers"
    assert public_name("digits test") == "digits test"


def test_other_names_keep_one_folder_unless_it_is_private(here: Path) -> None:
    assert public_name("/data/flowers/Train") == "flowers/Train"
    assert public_name("/data") == "data"
    assert public_name(str(here.parent / "photos")) == "photos"  # the home's name is somebody's
    assert public_name("/home/alice/photos") == "photos"
    assert public_name("/Users/alice/photos") == "photos"
    assert public_name(str(Path(tempfile.gettempdir()) / "x.onnx")) == "x.onnx"
    assert public_name("../photos/test") == "photos/test"
    assert public_name("../../somebody/photos") == "photos"


def test_a_command_line_can_be_typed_and_tells_nothing(here: Path) -> None:
    line = public_command(
        [
            *("python", "-m", "export", str(here / "runs/x"), "--calibration=/home/alice/my photos"),
            *("--max-drift=0.5", "--out", "../out", "--samples", "8"),
        ]
    )
    assert line == ("python -m export runs/x '--calibration=my photos' --max-drift=0.5 --out out --samples 8")


def test_images_have_names_to_publish(here: Path) -> None:
    items = [here / "photos" / "a" / "1.jpg", Path("/data/b/2.jpg"), np.zeros((2, 2, 3), np.uint8)]
    some = Images(items, None, None, str(here / "photos"))
    assert [some.public_name(index) for index in range(3)] == [
        str(Path("photos", "a", "1.jpg")),
        "b/2.jpg",
        "photos, image 2",
    ]
