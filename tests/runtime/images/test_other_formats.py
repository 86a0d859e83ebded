"""Formats that Pillow does not read: stand-ins for the packages that add them, real ones, and messages."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.errors import ImageError, describe_pixel_limit
from runtime.images.decode import decode_image
from runtime.images.other_formats import translate_reason

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
from runtime.images.other_formats import register_openers

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
        "runtime/batch/ray_engine.py",
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
        "from runtime.images.other_formats import register_openers\n"
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


# --- Messages: what a file is that Pillow does not open, and why it is refused ---

NO_IMAGE = "it is no image in a format that Pillow reads"


def refusal(data: bytes, max_pixels: int = 10**6) -> str:
    with (
        pytest.raises(ImageError) as caught,
        decode_image(data, max_pixels=max_pixels, exif=True, draft_edge=None),
    ):
        pass
    return str(caught.value)


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def tiff(color: int, bits: int, form: int, channels: int, *more: tuple[int, int]) -> bytes:
    """A TIFF of 2 x 2 zeros."""
    tags = [(256, 3, (2,)), (257, 3, (2,)), (258, 3, (bits,) * channels), (259, 3, (1,)), (262, 3, (color,))]
    tags += [(273, 4, (8,)), (277, 3, (channels,)), (278, 3, (2,)), (279, 4, (bits * channels // 2,))]
    tags += [(339, 3, (form,) * channels), *((tag, 3, (value,)) for tag, value in more)]
    pixels = bytes(bits * channels // 2)
    at = 8 + len(pixels)
    outside, entries = at + 2 + 12 * len(tags) + 4, b""
    rest = b""
    for tag, kind, values in sorted(tags):
        packed = struct.pack(f"<{len(values)}{'HI'[kind - 3]}", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), outside + len(rest))
            rest += packed
        else:
            entries += struct.pack("<HHI4s", tag, kind, len(values), packed)
    return (
        b"II*\0" + struct.pack("<I", at) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + rest
    )


def test_a_tiff_that_pillow_does_not_read_is_called_one_and_described() -> None:
    start = "it is TIFF by its first bytes, and cannot be read: its pixels are of a kind that Pillow does not"
    end = "; convert it to 8 or 16 bits"
    assert refusal(tiff(2, 32, 3, 3)) == f"{start} read (RGB, 32-bit floats){end}"
    assert refusal(tiff(8, 16, 1, 3)) == f"{start} read (CIELAB, 16-bit integers){end}"
    assert (
        refusal(tiff(5, 32, 3, 4, (317, 2))) == f"{start} read (CMYK, 32-bit floats, with a predictor){end}"
    )
    assert refusal(tiff(77, 64, 9, 3)) == f"{start} read (unknown colors, 64-bit numbers){end}"


def test_a_known_format_with_a_damaged_header_is_called_by_its_name() -> None:
    words = "by its first bytes, and cannot be read: "
    assert refusal(encoded("GIF")[:9]) == f"it is GIF {words}its header is damaged"
    codestream = encoded("JPEG2000", no_jp2=True)
    assert refusal(codestream[:12] + bytes(4) + codestream[16:]).startswith(
        f"it is JPEG2000 {words}its header is"
    )
    png = encoded("PNG")
    assert refusal(png[:8] + b"\xf4\xa8\x81\xe1" * 8) == f"it is PNG {words}its header is damaged"
    assert refusal(b"MM\0*" + b"\xff" * 40) == "it cannot be read: its header is damaged"
    assert refusal(b"8BPS\0\1" + bytes(20)).startswith("it is PSD ")


def test_a_plugin_that_finds_later_that_a_file_is_not_its_own_is_not_named() -> None:
    assert refusal(b"\xff\xfe\x00\xa3\x11\xaf" + b"\1" * 200) == NO_IMAGE
    assert refusal(b"neither this nor that") == NO_IMAGE


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\xff\x0a" + bytes(20), "it is JPEG XL, which Pillow reads only with pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "it is JPEG XL"),
        (b"v/1\x01" + bytes(20), "it is OpenEXR, whose pixels are floats"),
        (b"#?RADIANCE\n", "it is Radiance HDR"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), "it is a raw photo of a camera"),
        (b"%PDF-1.7\n", "it is PDF, a document"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', "it is XML; if it is an SVG drawing"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it is XML; if it is an SVG"),
    ],
)
def test_formats_that_pillow_does_not_know_are_named(start: bytes, words: str) -> None:
    assert refusal(start).startswith(words)


@pytest.mark.filterwarnings("ignore:AVIF")
def test_a_format_that_this_pillow_was_built_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    accept = lambda start: "AVIF support not installed" if start[4:12] == b"ftypavif" else False  # noqa: E731
    monkeypatch.setitem(Image.OPEN, "AVIF", (None, accept))  # type: ignore[arg-type]
    assert (
        refusal(b"\0\0\0\x1cftypavif" + bytes(20))
        == "it is AVIF, which this Pillow cannot read (AVIF support not installed)"
    )


def test_damaged_data_are_told_in_words() -> None:
    photo = encoded("JPEG", size=(64, 64))
    assert (
        refusal(photo[: len(photo) - 20])
        == "it cannot be decoded: it is cut short: the end of its data is missing"
    )
    for error, words in (
        (
            "buffer overrun when reading image file",
            "its data are damaged: they do not fit into an image of its size",
        ),
        ("broken data stream when reading image file", "its data are damaged"),
        (
            "image file is truncated (3 bytes not processed)",
            "it is cut short: the end of its data is missing",
        ),
        ("Truncated File Read", "it is cut short: the end of its data is missing"),
        ("something that nobody has met", "something that nobody has met"),
    ):
        assert translate_reason(OSError(error)) == words


def test_the_limit_that_is_named_is_the_one_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit follows --max-pixels, and is twice as high."""
    image = encoded("PNG", size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert refusal(image, max_pixels=100) == f"it has more pixels than {describe_pixel_limit(100)}"
    assert "set PIL.Image.MAX_IMAGE_PIXELS" in refusal(image, max_pixels=201)
    monkeypatch.undo()
    assert refusal(image, max_pixels=100) == f"it has 30 x 30 pixels, more than {describe_pixel_limit(100)}"
    assert describe_pixel_limit(100) == "the limit of 100 (max_pixels; --max-pixels on the command line)"


PYTHON = re.compile(r"unpack|buffer of|literal|index out|convert string|object|0x|EOF|Error")


def test_files_of_a_few_bytes_are_no_images_in_words() -> None:
    """Some plugins of Pillow trip over a start that is shorter than what they look for."""
    for content in [*(bytes([value]) for value in range(256)), b"\0\0", b"\x8fEz", b"\0\0\0", b"RIFF"]:
        assert not PYTHON.search(refusal(content)), content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"P6", "it cannot be read: it is cut short: the end of its data is missing"),
        (b"DDS |\0\0\0", "it cannot be read: it is cut short: the end of its data is missing"),
        (b"Pf\n128 128\n-", "it cannot be read: its header is damaged"),
    ],
)
def test_headers_that_end_early_are_said_so_in_words(content: bytes, words: str) -> None:
    assert refusal(content) == words
