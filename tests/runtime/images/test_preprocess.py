"""The one preprocessing: against everything that an image file can be. (Golden values: test_golden.py)"""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import socket
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import ImageError, Preprocess
from runtime.images.decode import MAX_PIXELS, decode_image
from runtime.images.preprocess import scale_resize_to

HERE = Path(__file__).parents[1]


def load_golden_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_result_is_contiguous_writable_and_its_own() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    pixels = Preprocess(size=(8, 8))(frame)
    pixels += 1
    assert pixels.flags.c_contiguous
    assert frame.max() == 0


def test_a_frame_of_the_right_size_is_not_changed() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
    assert np.array_equal(Preprocess(size=(32, 24), interpolation="bicubic")(frame), frame)
    assert np.array_equal(Preprocess(size=(32, 24), resize="crop")(frame[:, ::-1]), frame[:, ::-1])


def test_path_string_bytes_image_and_array_agree(tmp_path: Path) -> None:
    image = Image.fromarray(load_golden_maker().image_of(50, 70))
    path = tmp_path / "p.png"
    image.save(path)
    spec = Preprocess(size=(20, 20), interpolation="bicubic")
    expected = spec(np.asarray(image))
    data = path.read_bytes()
    for form in (path, str(path), data, bytearray(data), memoryview(data), image):
        assert np.array_equal(spec(form), expected), type(form)


def test_an_image_of_the_caller_stays_usable(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (800, 800), "red").save(path)
    with Image.open(path) as image:
        Preprocess(size=(32, 32), decode="draft")(image)
        assert image.size == (800, 800)
        assert image.getpixel((5, 5)) is not None


def test_eight_orientations_are_one_image() -> None:
    upright = Image.fromarray(load_golden_maker().image_of(48, 64))
    turned = {  # what a camera stores for each orientation: the inverse of how it is to be shown
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    spec = Preprocess(size=(24, 24))
    expected = spec(upright)
    for orientation, method in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for form in ("PNG", "TIFF", "WEBP"):
            options = {"lossless": True} if form == "WEBP" else {}
            data = encoded(upright.transpose(method), form, exif=exif, **options)
            assert np.array_equal(spec(data), expected), (orientation, form)
    assert not np.array_equal(Preprocess(size=(24, 24), exif=False)(data), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert Preprocess(size=(4, 4))(data)[0, 0, 0] > 240


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_transparency_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image = image.convert("LA") if mode == "La" else image
    pixels = Preprocess(size=(8, 8))(image.convert(mode))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("white_level", [65535, 4095])
def test_transparent_gray_of_16_bits_shows_white(white_level: int) -> None:
    values = np.full((8, 8), 1000, np.uint16)
    values[:4] = 1001  # 8 bits cannot tell them apart
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    pixels = Preprocess(size=(8, 8), white_level=white_level)(data)
    assert (pixels[4:] == 255).all()
    assert (pixels[:4] == round(255 * 1001 / white_level)).all()


def test_transparent_color_of_a_palette_shows_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    for form in ("PNG", "GIF"):
        pixels = Preprocess(size=(8, 8))(encoded(image, form, transparency=0))
        assert pixels[0, [0, 7]].tolist() == [[255, 255, 255], [255, 0, 0]], form


def test_sixteen_bits_scale_to_eight() -> None:
    values = np.array([[0, 130, 32768, 65405, 65535]], np.uint16)
    pixels = Preprocess(size=(1, 5))(encoded(Image.fromarray(values)))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 254, 255]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "La", "RGBa", "RGBX"]
)
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (6, 5), "white")
    if mode == "LAB":
        image = Image.new("LAB", (6, 5), (255, 128, 128))
    elif mode in ("I", "I;16"):
        image = Image.fromarray(np.full((5, 6), 65535, np.int32 if mode == "I" else np.uint16))
    elif mode in ("La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    else:
        image = image.convert(mode)
    assert image.mode == mode
    assert Preprocess(size=(3, 3))(image).min() >= 254


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert Preprocess(size=(1, 1))(data)[0, 0, 0] > 200, form


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"resize": "crop", "resize_to": 256, "interpolation": "bicubic"}])
def test_odd_shapes_take_no_memory(size: tuple[int, int], options: dict[str, Any]) -> None:
    pixels = Preprocess(**options)(Image.new("RGB", size, (10, 20, 30)))
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (10, 20, 30)).all()


def test_draft_decodes_large_jpegs_smaller_and_small_ones_fully() -> None:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (24, 32, 3), np.uint8), np.ones((50, 50, 1), np.uint8))
    large = encoded(Image.fromarray(blocks), "JPEG", quality=92)
    full, draft = (Preprocess(size=(64, 64), decode=way)(large).astype(int) for way in ("full", "draft"))
    assert np.abs(full - draft).mean() < 2
    assert np.abs(full - draft).max() > 0  # it did take the other way
    small = encoded(Image.fromarray(blocks[:120, :120]), "JPEG")
    assert np.array_equal(*(Preprocess(size=(64, 64), decode=way)(small) for way in ("full", "draft")))


def failure(image: Any, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        Preprocess(size=(8, 8))(image, **limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_failures_say_what_is_wrong(tmp_path: Path) -> None:
    jpeg = encoded(Image.fromarray(load_golden_maker().image_of(64, 64)), "JPEG")
    assert "empty" in failure(b"")
    assert "no image" in failure(b"not an image, but text")
    assert "cut short" in failure(jpeg[: len(jpeg) // 2])
    assert "folder" in failure(tmp_path)
    assert "No such file" in failure(tmp_path / "nothing.jpg")
    assert "null" in failure("a\0b.jpg")
    assert "limit of 63" in failure(encoded(Image.new("L", (8, 8))), max_pixels=63)
    assert "uint8" in failure(np.zeros((8, 8, 3), np.float32))
    assert "[8, 8, 2]" in failure(np.zeros((8, 8, 2), np.uint8))
    assert "without pixels" in failure(np.zeros((0, 8, 3), np.uint8))
    assert "floats" in failure(Image.new("F", (8, 8)))
    assert "neither 8 nor 16 bits" in failure(Image.fromarray(np.full((8, 8), 70000, np.int32)))
    assert "pillow-heif" in failure(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    tiff = bytearray(encoded(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_adobe_deflate"))
    tiff[8:16] = b"\xff" * 8
    assert "damaged" in failure(bytes(tiff))
    assert "PostScript" in failure(encoded(Image.new("RGB", (8, 8)), "EPS"))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets or pipes in folders here")
def test_sockets_and_pipes_are_refused_and_do_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert "not an image" in failure("pipe.jpg")
        assert "not an image" in failure("socket.jpg")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    bomb[18:26] = (9_000).to_bytes(4, "little") * 2  # width and height
    assert "9000 x 9000 pixels, more than the limit of 10,000,000" in failure(bytes(bomb), max_pixels=10**7)
    bomb[18:26] = (1).to_bytes(4, "little") + (9_000_000).to_bytes(4, "little")
    assert "1 x 9000000 pixels, too narrow" in failure(bytes(bomb), max_pixels=10**7)  # 108 MB, not 36
    bomb[18:26] = (90_000).to_bytes(4, "little") * 2
    assert "more pixels than the limit of 89,478,485 (max_pixels" in failure(bytes(bomb))
    assert "PIL.Image.MAX_IMAGE_PIXELS" in failure(bytes(bomb), max_pixels=10**10)


@pytest.mark.parametrize("kept", [600, None], ids=["cut off", "whole"])
def test_the_pixels_of_a_large_image_go_before_the_next_one_is_decoded(kept: int | None) -> None:
    """However long a failure, whose frames refer to it, is kept: two at a time can take a gibibyte."""
    seen, failures = [], []
    data = encoded(Image.new("RGB", (5000, 4000)), "BMP")[:kept]
    try:
        with decode_image(data, max_pixels=MAX_PIXELS, exif=True, draft_edge=None) as image:
            seen.append(image)
    except ImageError as error:
        failures.append(error)
    assert len(failures) == (kept is not None)
    images = [each for each in gc.get_objects() if issubclass(type(each), Image.Image)]
    seen += [image for image in images if image.size == (5000, 4000)]
    assert seen
    for image in seen:
        with pytest.raises(ValueError, match="closed image"):
            image.getpixel((0, 0))


def test_wrong_types_are_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="found int"):
        Preprocess()(7)  # type: ignore[arg-type]


@given(
    st.builds(
        Preprocess,
        size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
        resize=st.sampled_from(["stretch", "crop"]),
        interpolation=st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
        exif=st.booleans(),
        decode=st.sampled_from(["full", "draft"]),
    )
)
def test_json_round_trip(spec: Preprocess) -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [224]}, "size"),
        ({"size": [0, 224]}, "size"),
        ({"size": [224, 10**9]}, "size"),
        ({"size": [224.0, 224]}, "size"),
        ({"size": True}, "size"),
        ({"resize": "squash"}, "stretch, crop"),
        ({"interpolation": "cubic"}, "bicubic"),
        ({"interpolation": ["bicubic"]}, "bicubic"),
        ({"decode": None}, "draft"),
        ({"exif": 1}, "exif"),
        ({"resize_to": 256}, "crop"),
        ({"resize": "crop", "resize_to": 100}, "224"),
        ({"resize": "crop", "resize_to": "256"}, "256"),
        ({"mean": [0, 0, 0]}, "unknown preprocessing mean"),
    ],
)
def test_wrong_specifications(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict(Preprocess().to_dict() | change)


def test_missing_field() -> None:
    document = Preprocess().to_dict()
    del document["size"]
    with pytest.raises(ValueError, match="lacks size"):
        Preprocess.from_dict(document)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_fail_cleanly(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
    content = bytearray(encoded(Image.fromarray(load_golden_maker().image_of(24, 24)), form))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = Preprocess(size=(8, 8))(bytes(content), max_pixels=1_000_000)
    except ImageError:
        return
    assert pixels.shape == (8, 8, 3)


def gray16(values: Any) -> bytes:
    return encoded(Image.fromarray(np.asarray(values, np.uint16)), "PNG")


def test_twelve_bits_in_a_file_of_sixteen() -> None:
    """0 to 4095 fill 0 to 255, rounded to the nearest; without the level such an image is nearly black."""
    values = np.arange(4096).reshape(64, 64)
    spec = Preprocess(size=(64, 64), white_level=4095)
    found = spec(gray16(values))
    assert np.array_equal(found[..., 0], np.rint(values * 255 / 4095))
    assert spec(gray16(values * 16 + 15)).min() == 1  # 15 of 4095; the rest is white
    assert spec(gray16(np.full((64, 64), 65535))).min() == 255
    assert replace(spec, white_level=65535)(gray16(values)).max() == 16
    tiff = encoded(Image.fromarray(values.astype(np.uint16)), "TIFF")
    assert np.array_equal(spec(tiff), found)
    eight = Image.fromarray(np.full((64, 64), 77, np.uint8))
    assert np.unique(spec(encoded(eight, "PNG"))).tolist() == [77]  # 8 bits are left alone


def test_sixteen_bits_per_color_have_no_white_level() -> None:
    row = b"\0" + bytes([1, 2] * 3 * 4)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(row * 4)),
            (b"IEND", b""),
        )
    )
    assert Preprocess(size=(4, 4))(png).shape == (4, 4, 3)
    with pytest.raises(ImageError, match="16 bits per color"):
        Preprocess(size=(4, 4), white_level=4095)(png)


def test_the_white_level_is_written_where_it_is_not_the_usual_one() -> None:
    """Model files that do not need it stay as they are, and an older reader refuses those that do."""
    assert "white_level" not in Preprocess().to_dict()
    spec = Preprocess(white_level=1023)
    assert spec.to_dict()["white_level"] == 1023
    assert Preprocess.from_dict(spec.to_dict()) == spec
    assert Preprocess.from_dict(Preprocess().to_dict()) == Preprocess()
    for wrong in (0, 65536, True, 4095.0, "4095", None):
        with pytest.raises(ValueError, match="white_level must be 1 to 65535"):
            Preprocess(white_level=wrong)  # type: ignore[arg-type]


def where(width: int, height: int) -> np.ndarray:
    """An image whose pixels say where they are: red is the column, green the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("options", "width", "height", "columns", "rows"),
    [
        # Straight to 10 x 8: each pixel is the center of 6 columns and 5 rows.
        ({}, 60, 40, range(3, 60, 6), range(2, 40, 5)),
        # To 30 x 16 first, which halves it; 10 and 4 pixels are cut off on each side.
        ({"resize_to": (16, 30)}, 60, 32, range(21, 40, 2), range(9, 24, 2)),
        # The shorter edge is 20 of 40: half as large, in either direction.
        ({"resize": "crop", "resize_to": 20}, 60, 40, range(21, 40, 2), range(13, 28, 2)),
        ({"resize": "crop", "resize_to": 20}, 40, 60, range(11, 30, 2), range(23, 38, 2)),
        # 12 x 10 is covered with 24 x 10 or 12 x 20, half of each; then the center of that.
        ({"resize": "crop", "resize_to": (10, 12)}, 48, 20, range(15, 34, 2), range(3, 18, 2)),
        ({"resize": "crop", "resize_to": (10, 12)}, 24, 40, range(3, 22, 2), range(13, 28, 2)),
        # Without `resize_to`, the size itself is covered.
        ({"resize": "crop"}, 60, 16, range(21, 40, 2), range(1, 16, 2)),
        ({"resize": "crop"}, 20, 60, range(1, 20, 2), range(23, 38, 2)),
    ],
)
def test_the_part_of_an_image_that_the_model_sees(
    options: dict[str, Any], width: int, height: int, columns: range, rows: range
) -> None:
    seen = Preprocess(size=(8, 10), interpolation="nearest", **options)(where(width, height))
    assert seen[0, :, 0].tolist() == list(columns)
    assert seen[:, 0, 1].tolist() == list(rows)


@pytest.mark.parametrize("edge", [32, (32, 20), (20, 32)])
def test_a_jpeg_is_decoded_at_no_less_than_twice_what_the_resize_needs(edge: int | tuple[int, int]) -> None:
    """It can be halved as long as 64 pixels are left of each edge."""
    rng = np.random.default_rng(0)
    spec = Preprocess(size=(8, 8), resize="crop", resize_to=edge)
    for side, halved in ((127, False), (128, True)):
        data = encoded(Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)), "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            expected = spec(np.asarray(image))
        assert np.array_equal(replace(spec, decode="full")(data), expected)
        assert np.array_equal(spec(data), expected) is not halved


def test_words_of_wrong_edges() -> None:
    pair = "resize_to must be (height, width), at least (8, 10), found "
    number = 'resize_to has a meaning as one number for resize="crop" only; give (height, width)'
    for resize, edge, words in (
        ("crop", (8,), pair + "(8,)"),
        ("crop", (8, 10, 12), pair + "(8, 10, 12)"),
        ("crop", (7, 10), pair + "(7, 10)"),
        ("stretch", (8, 9), pair + "(8, 9)"),
        ("stretch", (8, 4097), pair + "(8, 4097)"),
        ("stretch", (8.0, 10), pair + "(8.0, 10)"),
        ("stretch", 12, number),
        ("crop", 9, "resize_to must be 10 to 4096, found 9"),
        ("crop", 4097, "resize_to must be 10 to 4096, found 4097"),
        ("crop", 12.0, "resize_to must be 10 to 4096, found 12.0"),
    ):
        with pytest.raises(ValueError, match="resize_to") as caught:
            Preprocess(size=(8, 10), resize=resize, resize_to=edge)  # type: ignore[arg-type]
        assert str(caught.value) == words
    for resize, edge in (("crop", 10), ("crop", 4096), ("crop", (8, 10)), ("stretch", (8, 4096))):
        spec = Preprocess(size=(8, 10), resize=resize, resize_to=edge)  # type: ignore[arg-type]
        document = spec.to_dict()
        assert document["resize_to"] == (list(edge) if isinstance(edge, tuple) else edge)
        assert Preprocess.from_dict(json.loads(json.dumps(document))) == spec


def test_words_of_unknown_and_missing_fields() -> None:
    document = Preprocess().to_dict()
    known = "decode, exif, interpolation, resize, resize_to, size, white_level"
    with pytest.raises(ValueError, match="unknown") as caught:
        Preprocess.from_dict(document | {"std": 1, "mean": 0})
    assert str(caught.value) == f"unknown preprocessing mean, std; known: {known}"
    del document["size"], document["exif"]
    with pytest.raises(ValueError, match="lacks") as caught:
        Preprocess.from_dict(document)
    assert str(caught.value) == "preprocessing lacks exif, size"


def test_the_same_view_at_another_size() -> None:
    assert scale_resize_to(None, 8 / 7) is None
    assert scale_resize_to(256, 8 / 7) == 293
    assert scale_resize_to((224, 256), 8 / 7) == (256, 293)
