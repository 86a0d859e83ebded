"""Messages of refused images, word for word, and both sides of each limit."""

from __future__ import annotations

import io
import os
import pickle
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError, describe_pixel_limit
from runtime.images import decode
from runtime.images.decode import decode_image, reserve_memory


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(
    image: Any, *, max_pixels: int = 10**6, exif: bool = True, draft_edge: int | None = None
) -> np.ndarray:
    with decode_image(image, max_pixels=max_pixels, exif=exif, draft_edge=draft_edge) as found:
        assert found.mode == "RGB"
        return np.array(found)


def refusal(image: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        pixels(image, **options)
    return str(caught.value)


def test_words_of_each_refusal_of_bytes() -> None:
    assert refusal(b"") == "it is empty (zero bytes)"
    assert refusal(b"neither this nor that") == "it is no image in a format that Pillow reads"
    heic = "it is HEIC, which Pillow reads only with pillow-heif; convert it to JPEG"
    for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        assert refusal(b"\0\0\0\x18ftyp" + brand + b"\0" * 64) == heic
    for start in (b"\0\0\0\x18ftypavc1", b"\0\0\0\x18ftyqheic", b"\0\0\x18ftypheic"):
        assert refusal(start + b"\0" * 64) == "it is no image in a format that Pillow reads"
    eps = encoded(Image.new("RGB", (8, 8)), "EPS")
    assert refusal(eps) == "it is PostScript, a program and not an image; convert it to PNG"


def test_words_of_each_refusal_of_a_path(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: it is a folder, not an image"
    none = tmp_path / "none.png"
    assert refusal(none) == f"{none}: it cannot be opened: No such file or directory"
    assert refusal("zero\0byte") == "zero\\x00byte: it cannot be opened: embedded null byte"
    if hasattr(os, "mkfifo"):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        assert refusal(pipe) == f"{pipe}: it is a device, pipe or socket, not an image"


def test_the_message_names_the_file_and_the_reason_does_not(tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(encoded(Image.new("RGB", (64, 64), "red"))[:60])
    with os.scandir(tmp_path) as listing:
        (entry,) = listing
    for source in (cut, str(cut), entry):
        with pytest.raises(ImageError) as caught:
            pixels(source)
        again = pickle.loads(pickle.dumps(caught.value))  # from a process of a pool
        for error in (caught.value, again):
            assert str(error) == f"{cut}: {error.reason}"
            assert error.reason.startswith("it cannot be")
    large = tmp_path / "large.png"
    Image.new("RGB", (64, 64)).save(large)
    assert refusal(large, max_pixels=99).startswith(f"{large}: it has 64 x 64 pixels, more than")
    with pytest.raises(ImageError) as caught:
        pixels(cut.read_bytes())
    assert str(caught.value) == caught.value.reason  # bytes have no name


def test_a_folder_that_may_not_be_read_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes both rights to look into a folder; root has them always, so the answer is pretended."""
    for granted in (os.R_OK, os.X_OK, 0):
        monkeypatch.setattr(decode.os, "access", lambda path, mode, granted=granted: mode & ~granted == 0)
        assert refusal(tmp_path) == f"{tmp_path}: a folder that may not be read"
    monkeypatch.setattr(decode.os, "access", lambda path, mode: path == tmp_path)
    assert refusal(tmp_path) == f"{tmp_path}: it is a folder, not an image"


def test_words_of_each_refusal_of_an_array_or_an_image() -> None:
    must = "an array must be uint8 [height, width], [height, width, 3] or [height, width, 4], found "
    assert refusal(np.zeros((2, 2, 3), np.float32)) == must + "float32 [2, 2, 3]"
    assert refusal(np.zeros((2, 2, 2), np.uint8)) == must + "uint8 [2, 2, 2]"
    assert refusal(np.zeros((2, 2, 5), np.uint8)) == must + "uint8 [2, 2, 5]"
    assert refusal(np.zeros(4, np.uint8)) == must + "uint8 [4]"
    assert refusal(np.zeros((1, 2, 2, 3), np.uint8)) == must + "uint8 [1, 2, 2, 3]"
    assert refusal(np.zeros((0, 2, 3), np.uint8)) == "an array without pixels, found [0, 2, 3]"
    floats = "its pixels are floats, whose range no standard fixes; convert it to 8 or 16 bits"
    assert refusal(Image.new("F", (2, 2))) == floats
    assert refusal(Image.new("RGB", (0, 2))) == "it has no pixels (0 x 2)"
    for low, high in ((-1, 5), (0, 65536)):
        wide = Image.fromarray(np.array([[low, high]], np.int32))
        assert refusal(wide) == f"its values run from {low} to {high}, which is neither 8 nor 16 bits"
    with pytest.raises(
        TypeError, match=r"^an image is a path, bytes, a Pillow image or a uint8 array, found int$"
    ):
        pixels(7)


def test_the_values_of_sixteen_bits_round_to_the_nearest_of_eight() -> None:
    """0 is 0 and 65535 is 255, so 257 of the one are one of the other."""
    values = np.arange(0, 65536, 16, dtype=np.int32).reshape(64, 64)
    expected = np.rint(values / 257).astype(np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.uint16))):
        found = pixels(image)
        assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))
    ends = Image.fromarray(np.array([[128, 129, 385, 386, 65406, 65407, 65535]], np.int32))
    assert pixels(ends)[0, :, 0].tolist() == [0, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 4)])
def test_each_shape_of_an_array_is_an_image(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    gray = array.reshape(2, 3, -1)[..., :1]
    expected = array[..., :3] if shape[-1] in (3, 4) and len(shape) == 3 else np.repeat(gray, 3, axis=2)
    assert np.array_equal(pixels(array), expected)
    wider = np.zeros((2, 6, *shape[2:]), np.uint8)
    wider[:, ::2] = array
    assert np.array_equal(pixels(wider[:, ::2]), expected)  # not contiguous


def test_as_many_pixels_as_the_limit_are_an_image() -> None:
    data = encoded(Image.new("RGB", (20, 10), "red"))
    assert pixels(data, max_pixels=200).shape == (10, 20, 3)
    assert refusal(data, max_pixels=199) == f"it has 20 x 10 pixels, more than {describe_pixel_limit(199)}"
    big = encoded(Image.new("L", (1, 4000)))
    assert pixels(big, max_pixels=9600).shape == (4000, 1, 3)  # (1 + 2) · 4000 is 1.25 times as much
    narrow = f"it has 1 x 4000 pixels, too narrow for so many rows and {describe_pixel_limit(9599)}"
    assert refusal(big, max_pixels=9599) == narrow


def test_a_file_may_have_eight_bytes_a_pixel_and_a_mebibyte() -> None:
    data = encoded(Image.new("RGB", (64, 64), "red"), "BMP")
    most = 2**20 + 8 * 4096
    assert pixels(data + b"\0" * (most - len(data)), max_pixels=4096).shape == (64, 64, 3)
    words = f"it has {most + 1:,} bytes, more than an image of {describe_pixel_limit(4096)} needs"
    assert refusal(data + b"\0" * (most + 1 - len(data)), max_pixels=4096) == words


def test_what_pillow_says_is_passed_on_without_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Any:
        def load(self: Image.Image) -> None:
            raise error

        return load

    image = Image.new("RGB", (2, 2))
    for error, words in (
        (OSError("disk on fire"), "it cannot be decoded: disk on fire"),
        (
            OSError("decoder error -2"),
            "it cannot be decoded: its data are damaged, or of a kind that this Pillow lacks",
        ),
        (OSError(28, "No space left"), "it cannot be decoded: No space left"),
        (KeyError(), "it cannot be decoded: KeyError"),
        (MemoryError("of 4 GiB"), "not enough memory to decode it"),
        (ImageError("as it is"), "as it is"),
    ):
        monkeypatch.setattr(Image.Image, "load", failing(error))
        assert refusal(image) == words
    monkeypatch.undo()

    def refused(file: object) -> Image.Image:
        raise OSError("two\nlines")

    monkeypatch.setattr(decode.Image, "open", refused)
    assert refusal(b"anything") == "it cannot be read: two lines"


def test_pillows_own_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    found = refusal(encoded(Image.new("RGB", (5, 5))))
    assert found == "it has more pixels than Pillow opens; set PIL.Image.MAX_IMAGE_PIXELS as well to allow it"


def test_large_images_wait_for_each_other_and_small_ones_do_not() -> None:
    side = 2**12
    small, large = reserve_memory((side - 2, side), 10**9), reserve_memory((side - 1, side), 10**9)
    assert large is reserve_memory((side, side), 10**9)
    assert small is not large
    entered = threading.Event()

    def other() -> None:
        with reserve_memory((side, side), 10**9):
            entered.set()

    thread = threading.Thread(target=other)
    with large, large:  # the same thread may need it twice
        thread.start()
        assert not entered.wait(0.05)
    thread.join(5)
    assert entered.is_set()


def test_a_lock_held_by_a_thread_that_is_not_here_is_replaced() -> None:
    """After a fork the child has the lock, and not the thread that would let go of it."""
    before = reserve_memory((2**13, 2**13), 10**9)
    decode._after_fork()
    after = reserve_memory((2**13, 2**13), 10**9)
    assert after is not before
    with after:
        pass


def test_too_many_rows_between_two_passes_are_refused_from_a_quarter_more_on() -> None:
    rows = 2**20
    for width, fits in ((18, True), (19, False)):  # (18 + 2) · 2^20 is 1.25 times 2^24
        if fits:
            assert reserve_memory((width, rows), 100) is not None
        else:
            with pytest.raises(ImageError) as caught:
                reserve_memory((width, rows), 1000)
            found = f"resizing it takes {width} x {rows} pixels between its two passes"
            assert str(caught.value) == f"{found}, too many rows for {describe_pixel_limit(1000)}"
    assert reserve_memory((19, rows), 2**25) is not None


def test_an_image_of_the_callers_is_neither_closed_nor_drafted() -> None:
    file = io.BytesIO(encoded(Image.new("RGB", (64, 64), "red"), "JPEG"))
    with Image.open(file) as image:
        assert pixels(image, draft_edge=8).shape == (64, 64, 3)
        assert image.getpixel((0, 0))[0] > 250
    assert pixels(file.getvalue(), draft_edge=8).shape == (8, 8, 3)
    assert pixels(file.getvalue(), draft_edge=33).shape == (64, 64, 3)
    assert pixels(file.getvalue()).shape == (64, 64, 3)


def test_an_orientation_that_is_none_leaves_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    for found in (0, 1, 9, "6", None, 2.0):
        exif = Image.Exif()
        exif[0x0112] = found if isinstance(found, int) else 1
        image = Image.fromarray(array)
        monkeypatch.setattr(type(image), "getexif", lambda self, value=found: {0x0112: value})
        assert np.array_equal(pixels(image), array), found
    monkeypatch.setattr(type(image), "getexif", lambda self: {})
    assert np.array_equal(pixels(image), array)
    monkeypatch.setattr(type(image), "getexif", lambda self: {0x0112: 6})
    assert np.array_equal(pixels(image), np.rot90(array, -1))
    assert np.array_equal(pixels(image, exif=False), array)


def test_any_path_will_do_and_bytes_of_any_kind(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (3, 2), "red"))
    (tmp_path / "p.png").write_bytes(data)
    with os.scandir(tmp_path) as listing:
        (entry,) = listing
    padded = data + bytes(-len(data) % 4)
    for image in (entry, data, bytearray(data), memoryview(data), memoryview(padded).cast("I")):
        with decode_image(image, max_pixels=100, exif=True, draft_edge=None) as opened:
            assert (opened.size, opened.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    large = memoryview(bytes(2**20 + 801)).cast("B")
    wide = memoryview(bytes(2**20 + 804)).cast("I")  # a quarter as many items
    for image in (large, wide):
        refused = decode_image(image, max_pixels=100, exif=True, draft_edge=None)
        with pytest.raises(ImageError, match="bytes, more than an image of"), refused:
            pass


def test_alpha_that_is_none_is_not_shown() -> None:
    """A TGA states how many bits of alpha it has. With 0 of them, the fourth channel means nothing."""
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (40, 50, 60, 255))
    data = bytearray(encoded(image, "TGA"))
    assert pixels(bytes(data)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    data[17] &= 0xF0
    assert pixels(bytes(data)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_alpha_of_0_everywhere_is_refused_where_other_programs_ignore_it() -> None:
    words = "its alpha is 0 everywhere, which most programs ignore; convert it to RGB"
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    assert refusal(encoded(clear, "TGA")) == words
    assert pixels(encoded(clear, "PNG")).tolist() == [[[255] * 3] * 2]  # a PNG means it
    for alpha in (1, 255):
        clear.putpixel((1, 0), (0, 0, 0, alpha))
        assert pixels(encoded(clear, "TGA")).tolist() == [[[255] * 3, [255 - alpha] * 3]]
    opaque = Image.new("RGB", (2, 1), (10, 20, 30))
    assert pixels(encoded(opaque, "TGA")).tolist() == [[[10, 20, 30]] * 2]


def test_the_transparent_color_of_an_rgb_image_shows_white() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (10, 20, 31))
    assert pixels(encoded(image, "PNG", transparency=(10, 20, 30))).tolist() == [[[255] * 3, [10, 20, 31]]]


def test_an_opaque_rgb_image_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take a quarter of a gibibyte."""

    def copy(self: Image.Image) -> Image.Image:
        raise AssertionError("a copy")

    data = encoded(Image.new("RGB", (2, 2), (10, 20, 30)))
    monkeypatch.setattr(Image.Image, "copy", copy)  # which `convert` calls as well
    assert pixels(data).tolist() == [[[10, 20, 30]] * 2] * 2


def test_lab_becomes_srgb() -> None:
    """L is 0 to 255, a and b are 0 at 128: the red of sRGB is (54, 81, 70) of L*a*b*, under D50."""
    image = Image.new("LAB", (3, 1), (255, 128, 128))
    image.putpixel((1, 0), (0, 128, 128))
    image.putpixel((2, 0), (138, 209, 198))
    expected = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]])
    assert np.abs(pixels(image)[0].astype(int) - expected).max() <= 5


def test_a_folder_that_cannot_be_listed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in ((OSError(5, "Input/output error"), "Input/output error"), (OSError("gone"), "gone")):

        def scandir(path: object, error: OSError = error) -> Any:
            assert path == tmp_path
            raise error

        monkeypatch.setattr(decode.os, "scandir", scandir)
        assert refusal(tmp_path) == f"{tmp_path}: a folder that cannot be listed: {words}"


def test_an_image_inside_an_icon_counts_by_its_own_size() -> None:
    """The directory of an icon may say 16 x 8 of a larger one, which Pillow would decode."""
    icon = bytearray(encoded(Image.new("RGBA", (20, 10), "red"), "ICO", sizes=[(20, 10)]))
    assert pixels(bytes(icon), max_pixels=200).shape == (10, 20, 3)
    icon[6:8] = bytes((16, 8))  # width and height in the directory
    words = "it has 20 x 10 pixels, more than the limit of 199 (max_pixels"
    assert refusal(bytes(icon), max_pixels=199).startswith(words)


def test_parts_are_counted_from_a_mebibyte_on() -> None:
    """A smaller file cannot have enough of them to take Pillow seconds."""
    png = encoded(Image.new("RGB", (2, 2), "red"))
    empty = bytes(4) + b"teXt" + zlib.crc32(b"teXt").to_bytes(4, "big")
    many = png[:33] + empty * 11_000 + png[33:]
    counted = "it has more than 10,256 chunks or segments (usual: 10 to 20); save it again"
    assert pixels(many + bytes(2**20 - len(many))).tolist() == [[[255, 0, 0]] * 2] * 2
    assert refusal(many + bytes(2**20 + 1 - len(many))) == counted


@pytest.mark.parametrize(
    ("form", "exif"),
    [("JPEG", b"Exif\0\0II*\0\xff\xff\xff\x7f"), ("PNG", b"Exif\0\0no TIFF"), ("WEBP", b"Exif\0\0no TIFF")],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_a_broken_orientation_stays_as_it_is(form: str, exif: bytes) -> None:
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (16, 0, 32, 16))
    found = pixels(encoded(image, form, exif=exif))
    assert found[:, :16].max() < 9
    assert found[:, 16:].min() > 246
