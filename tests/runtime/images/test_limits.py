"""Memory and time that the size of an image does not tell: tiles, icons, tiles of JPEG 2000, scans."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError, describe_pixel_limit
from runtime.images.jpeg import MAX_SCANS, count_scans
from runtime.images.preprocess import MAX_PIXELS, Preprocess

ROOT = Path(__file__).parents[3]
SEE = Preprocess(size=(8, 8))
# In a process of its own, whose memory is all its own from the start.
MEASURE = """
import resource, sys
from PIL import Image
from runtime.images.preprocess import ImageError, Preprocess
Image.init()
see = Preprocess(size=(8, 8))
see(Image.new("RGB", (64, 64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        see(path)
        print("decoded")
    except ImageError as error:
        print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        SEE(data, max_pixels=max_pixels)
    return str(caught.value)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG of black and white, of a thousandth of its pixels in bytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def tiff(tile: int, *, edge: int = 16) -> bytes:
    """A TIFF of gray with one tile of `tile` x `tile` pixels."""
    data = zlib.compress(bytes(tile * tile if tile < 512 else 256))
    tags = [(256, edge), (257, edge), (258, 8), (259, 8), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def ico(*parts: bytes, bits: int = 32) -> bytes:
    start, at = b"\0\0\1\0" + struct.pack("<H", len(parts)), 6 + 16 * len(parts)
    for part in parts:
        start += struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, bits, len(part), at)
        at += len(part)
    return start + b"".join(parts)


def icns(part: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(part)) + b"ic10" + struct.pack(">I", 8 + len(part)) + part


def bitmap(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 8, 0, 0, 0, 0, 0, 0)
    return header + b"\1\2\3\0" * 256 + bytes(100)


def test_tiles_are_hardly_larger_than_the_image() -> None:
    assert refusal(tiff(46016)).startswith("it has tiles of 46016 x 46016 pixels for an image of 16 x 16;")
    # 4,112 is the first multiple of 16 above 2^12.
    assert refusal(tiff(4112)).startswith("it has tiles of 4112 x 4112")
    for honest in (tiff(16), tiff(256, edge=100)):
        assert SEE(honest).shape == (8, 8, 3)
    assert "tiles of" not in refusal(tiff(4096))  # is short


def test_images_inside_icons_are_those_of_icons() -> None:
    small, icon = png(16, 16), "it is an icon that holds an image of "
    limit = describe_pixel_limit(MAX_PIXELS)
    assert refusal(ico(png(13000, 13000))) == f"it has 13000 x 13000 pixels, more than {limit}"
    assert refusal(ico(small, bitmap(13000, 13000))) == f"it has 13000 x 13000 pixels, more than {limit}"
    assert refusal(ico(small, png(1025, 16))).startswith(f"{icon}1025 x 16 pixels")
    assert (
        refusal(ico(small), max_pixels=255) == f"it has 16 x 16 pixels, more than {describe_pixel_limit(255)}"
    )
    photo = encoded(Image.new("L", (1100, 1100)), "JPEG2000")
    for part in (png(1025, 1025), photo, encoded(Image.new("L", (1100, 1100)), "JPEG2000", no_jp2=True)):
        assert refusal(icns(part)).startswith(f"{icon}1")
    for honest in (
        ico(small),
        icns(png(1024, 1024)),
        ico(encoded(Image.new("RGBA", (16, 16), "red"), "PNG")),
    ):
        assert SEE(honest).shape == (8, 8, 3)


def test_samples_of_a_jpeg_2000_tile_count_as_pixels() -> None:
    image = Image.new("RGB", (2500, 2500))  # three times as many samples
    data = encoded(image, "JPEG2000")
    limit = 2**24
    assert (
        refusal(data, max_pixels=limit)
        == f"its tiles have 18,750,000 samples, more than {describe_pixel_limit(limit)}"
    )
    assert SEE(data, max_pixels=18_750_000).shape == (8, 8, 3)
    tiled = encoded(image, "JPEG2000", tile_size=(512, 512))
    assert SEE(tiled, max_pixels=limit).shape == (8, 8, 3)


def test_tiles_of_a_jpeg_2000_are_counted() -> None:
    """306 bytes of 65,280 tiles took 752 MiB."""
    data = bytearray(encoded(Image.new("L", (4080, 4096)), "JPEG2000", no_jp2=True))
    data[24:32] = struct.pack(">II", 16, 16)
    assert refusal(bytes(data)).startswith("it has 65,280 tiles (limit: 4,096)")
    honest = encoded(Image.new("L", (1024, 1024)), "JPEG2000", tile_size=(16, 16))
    assert SEE(honest).shape == (8, 8, 3)


def test_chunks_and_segments_are_few() -> None:
    empty = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    photo, drawing = encoded(Image.new("L", (16, 16)), "JPEG"), png(16, 16)
    for start, part, rest in (
        (drawing[:33], empty, drawing[33:]),  # before the pixels
        (drawing[:-12], empty, drawing[-12:]),  # and behind them
        (photo[:2], b"\xff\xfe\0\2", photo[2:]),
    ):
        assert SEE(start + part * 9000 + rest).shape == (8, 8, 3)
        assert "more than 10," in refusal(start + part * (2**20 // len(part) + 9) + rest)
    for padding in (b"\0", b"\xff"):
        assert "bytes between its segments" in refusal(photo[:20] + padding * 2**20 + photo[20:])
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    for form in ("PNG", "JPEG"):  # large and honest
        data = encoded(Image.fromarray(noise), form, **({"quality": 98} if form == "JPEG" else {}))
        assert len(data) > 2**20
        assert SEE(data).shape == (8, 8, 3)


@pytest.mark.parametrize("frames", [1, 2])
def test_images_inside_an_avif_count_against_the_limit(frames: int) -> None:
    """The file may state 64 x 64, and AV1 decodes its own size first."""
    image = Image.new("RGBA", (1600, 1200), (9, 90, 200, 30))
    more = {"save_all": True, "append_images": [Image.new("RGBA", image.size)]} if frames > 1 else {}
    data = encoded(image, "AVIF", speed=10, **more)
    assert SEE(data, max_pixels=1600 * 1200).shape == (8, 8, 3)
    stated = data.replace(struct.pack(">II", 1600, 1200), struct.pack(">II", 64, 64))  # of its items
    stated = stated.replace(
        struct.pack(">II", 1600 << 16, 1200 << 16), struct.pack(">II", 64 << 16, 64 << 16)
    )
    assert stated != data
    assert "it holds an image of 1600 x 1200 pixels, more than" in refusal(stated, max_pixels=100_000)
    for size in ((1, 1), (17, 3), (65, 129)):
        for options in ({"quality": 100}, {"subsampling": "4:4:4", "range": "limited"}, {"tile_rows": 1}):
            assert SEE(encoded(Image.new("RGB", size), "AVIF", **options)).shape == (8, 8, 3)


def test_comments_among_the_pixels_of_a_plain_ppm_are_few() -> None:
    """Pillow copies a megabyte for each."""
    few = b"P2 4 4 255\n" + b"# a\n7 " * 16
    assert SEE(few).shape == (8, 8, 3)
    start = time.monotonic()
    assert "comments" in refusal(b"P2 4 4 255\n" + b"#\n" * 250_000 + b"7 " * 16)
    assert time.monotonic() - start < 1


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB is Linux's")
def test_files_of_a_few_bytes_take_little_memory(tmp_path: Path) -> None:
    big = png(13000, 13000)
    files = {"tile.tif": tiff(46016), "png.ico": ico(big), "png.icns": icns(big)}
    files |= {"bitmap.ico": ico(bitmap(13000, 13000), bits=8)}
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name])
    # The shell between has little memory: a process inherits the peak of the one that it was forked from.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    *reasons, growth = done.stdout.splitlines()
    assert all(reason.startswith("it ") for reason in reasons), reasons
    assert int(growth) < 40


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def progressive(edge: int, scans: int) -> bytes:
    """A progressive JPEG of gray whose scans beyond the first refine nothing."""
    data = encoded(Image.new("L", (edge, edge), 128), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    end = first + 10
    while data[end] != 0xFF or data[end + 1] == 0:
        end += 1
    blocks, bits = (-(-edge // 8)) ** 2, ""
    while blocks > 0:
        bits += "0" + "1" * 14  # a run of 32,767 blocks without a coefficient
        blocks -= 2**15 - 1
    bits += "1" * (-len(bits) % 8)
    runs = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    more = segment(0xDA, bytes([1, 1, 0, 1, 63, 1])) + runs
    refined = segment(0xDA, bytes([1, 1, 0, 1, 63, 0x10])) + runs
    return data[:end] + tables + b"".join([more, *[refined] * (scans - 2)]) + b"\xff\xd9"


TOO_MANY = f"it has more than {MAX_SCANS} scans (usual: 10 to 20); save it again as JPEG"


def test_scans_are_counted_before_any_is_decoded() -> None:
    assert SEE(progressive(64, MAX_SCANS)).shape == (8, 8, 3)
    assert refusal(progressive(64, MAX_SCANS + 1)) == TOO_MANY
    assert refusal(progressive(8000, 2000)) == TOO_MANY  # would take minutes
    gray = encoded(Image.new("L", (64, 64)), "JPEG")
    colors = encoded(Image.new("RGB", (64, 64)), "JPEG", subsampling=0)
    body = gray[gray.index(b"\xff\xda") + 10 : -2]
    start = colors[: colors.index(b"\xff\xda")]
    scans = [segment(0xDA, bytes([1, number, 0, 0, 63, 0])) + body for number in (1, 2, 3)]
    assert SEE(start + b"".join(scans) + b"\xff\xd9").shape == (8, 8, 3)  # sequential, a scan per color
    assert refusal(start + b"".join([scans[0] * 100, *scans]) + b"\xff\xd9") == TOO_MANY
    two = io.BytesIO()
    Image.open(io.BytesIO(progressive(64, 200))).save(two, "JPEG")
    second = progressive(64, 200)
    assert SEE(two.getvalue() + second).shape == (8, 8, 3)  # what follows the end is never decoded


def test_only_scans_of_the_image_count(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    scan = segment(0xDA, bytes(8))
    thumbnail = segment(0xE1, b"Exif\0\0" + scan * 200)
    first = data.index(b"\xff\xda")
    stuffed = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)),
        "JPEG",
        quality=100,
        progressive=True,
        restart_marker_blocks=3,
    )
    assert b"\xff\0" in stuffed
    assert b"\xff\xd3" in stuffed
    for file in (
        data,
        data[:2] + thumbnail + data[2:],
        data[:first] + b"\xff" * 9 + data[first:],  # fill bytes
        data + scan * 200,
        stuffed,
        data[:2] + segment(0xFE, bytes(65533)) * 3 + data[2:],  # over several blocks
    ):
        assert count_scans(io.BytesIO(file)) == 10
        (tmp_path / "a.jpg").write_bytes(file)
        with (tmp_path / "a.jpg").open("rb") as opened:
            assert count_scans(opened) == 10
    for file in (b"", b"\xff\xd8", data[: first + 1], data[:first] + b"\xff\xda\0\1" * 9):
        assert count_scans(io.BytesIO(file)) <= 1


def test_scans_in_a_tiff_are_few() -> None:
    """libtiff counts them itself, strip by strip."""
    data = progressive(64, 300)
    tags = [(256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (277, 1), (278, 64)]
    tags += [(273, 8 + 2 + 12 * 9 + 4), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data
    assert "damaged" in refusal(file)
