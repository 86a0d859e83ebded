"""Formats that packages beside the command line bring: stand-ins for the packages, and real ones."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
# A format whose file is the word "fake" and a color: what pillow-heif and rawpy do, in a few lines.
FAKES = {
    "pillow_heif": """
from PIL import Image, ImageFile

class Fake(ImageFile.ImageFile):
    format = "FAKE"

    def _open(self):
        assert self.fp.read(4) == b"fake"
        self._size, self._mode = (8, 8), "RGB"
        self.tile = [ImageFile._Tile("raw", (0, 0, 8, 8), 4, ("RGB", 0, 1))]

def register_heif_opener():
    Image.register_open(Fake.format, Fake, lambda start: start.startswith(b"fake"))
    Image.register_extension(Fake.format, ".hif")
""",
    "rawpy": """
from types import SimpleNamespace
import numpy as np

class LibRawError(Exception): ...

class Photo:
    sizes = SimpleNamespace(width=8, height=6, flip=6)
    def __enter__(self): return self
    def __exit__(self, *_): ...
    def postprocess(self, *, use_camera_wb, user_flip):
        assert use_camera_wb and user_flip == 0
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:, :4, 0] = 250
        pixels[:, 4:, 2] = 250
        return pixels

def imread(file):
    if b"damaged" in file.read():
        raise LibRawError("Unsupported file format")
    return Photo()
""",
}
SCRIPT = """
import sys
import numpy as np
from runtime import ImageError, Preprocess, find_images
from runtime.images.openers import register_openers

list(find_images("photos"))  # the suffixes are known by now, and new ones come
names = register_openers()
assert register_openers() == names  # again changes nothing
print(*names)
for path in find_images("photos"):
    try:
        pixels = Preprocess(size=(6, 4), interpolation="nearest")(path)
        print(path.name, *pixels[0, 0], *pixels[0, -1])
    except ImageError as error:
        print(path.name, error)
"""
TIFF = b"II*\0\x08\0\0\0" + bytes(20)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.hif").write_bytes(b"fake" + bytes([10, 250, 10]) * 64)
    Image.new("RGB", (4, 4), "green").save(folder / "b.nef", "TIFF")  # the preview, which Pillow would take
    (folder / "c.DNG").write_bytes(TIFF + b"damaged")
    (folder / "d.tif").write_bytes(TIFF)
    (folder / "e.jxl").write_bytes(b"\xff\x0a")
    return folder


def run(folder: Path, *packages: str) -> list[str]:
    """Run the script where these stand-ins are all that is to be found of the packages."""
    modules = folder.parent / "modules"
    modules.mkdir()
    for name in ("pillow_heif", "pillow_jxl", "rawpy"):
        code = FAKES[name] if name in packages else "raise ImportError"
        (modules / f"{name}.py").write_text(code)
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = [{str(modules)!r}, {str(ROOT)!r}]\n{SCRIPT}",
    ]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_installed_packages_are_used_and_their_suffixes_known(photos: Path) -> None:
    names, *lines = run(photos, "pillow_heif", "rawpy")
    assert names == "pillow_heif rawpy"
    found = dict(line.split(" ", 1) for line in lines)
    assert list(found) == ["a.hif", "b.nef", "c.DNG", "d.tif"]
    assert found["a.hif"] == "10 250 10 10 250 10"
    assert found["b.nef"] == "250 0 0 250 0 0"  # turned by a quarter: what was left is above
    assert "TIFF" in found["c.DNG"]
    assert "TIFF" in found["d.tif"]  # a raw photo by its suffix alone


def test_without_the_packages_nothing_changes(photos: Path) -> None:
    names, *lines = run(photos)
    assert names == ""
    assert [line.split()[0] for line in lines] == ["d.tif"]


def test_every_command_line_registers_them() -> None:
    for module in (
        "runtime/command_line.py",
        "runtime/batch/cluster/ray_engine.py",
        "vit/commands/main.py",
        "export/command_line.py",
    ):
        assert "    register_openers()" in (ROOT / module).read_text(encoding="utf-8"), module


@pytest.mark.parametrize(("package", "form"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_the_real_packages(package: str, form: str, tmp_path: Path) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    script = (
        "import io\nfrom PIL import Image\nfrom runtime import Preprocess\n"
        "from runtime.images.openers import register_openers\n"
        f"assert {package!r} in register_openers()\n"
        f"file = io.BytesIO(); Image.new('RGB', (32, 24), (200, 20, 20)).save(file, {form!r})\n"
        "print(*Preprocess(size=(8, 8))(file.getvalue())[4, 4])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    red, green, blue = map(int, done.stdout.split())
    assert red > 190
    assert max(green, blue) < 30
