"""Files of every form that Pillow opens, written bit by bit: the pixels they hold, or a refusal."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import OPEN_INFO

from runtime.errors import ImageError
from runtime.images.find_images import image_suffixes
from runtime.images.preprocess import Preprocess

HEIGHT, WIDTH = 40, 48
SEE = Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest")
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
# Red, green, blue and a fourth, of 1.
PARTS = np.stack(
    [
        COLUMNS / (WIDTH - 1),
        ROWS / (HEIGHT - 1),
        (ROWS + COLUMNS) / (WIDTH + HEIGHT - 2),
        COLUMNS * 2 % WIDTH / WIDTH,
    ],
    axis=-1,
)
RED, GREEN, BLUE, FOURTH = np.moveaxis((PARTS * 255).astype(np.uint8), -1, 0)
RGB, GRAY = np.dstack([RED, GREEN, BLUE]), np.dstack([RED] * 3)
TOP = np.where(ROWS < 20, 255, 0).astype(np.uint8)  # alpha: the upper half is opaque
OVER_WHITE = np.where(TOP[..., None] == 255, RGB, 255)
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
Tag = tuple[int, int, Sequence[int]]


def error_of(data: bytes, expected: Any, spec: Preprocess = SEE) -> float | str:
    """The mean error of what is decoded, of 255, or why it is refused."""
    try:
        found = spec(data)
    except ImageError as error:
        return str(error)
    return float(np.abs(found - np.asarray(expected, float)).mean())


def check_right(data: bytes, expected: Any, spec: Preprocess = SEE) -> None:
    found = error_of(data, expected, spec)
    assert isinstance(found, float), found
    assert found < 2.2


def check_refused(data: bytes, words: str, spec: Preprocess = SEE) -> None:
    assert words in str(error_of(data, GRAY, spec))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of samples, each row filled up to a whole byte."""
    if bits in (8, 16, 32):
        kind = "f" if values.dtype.kind == "f" else "u"
        return values.astype(f"{order}{kind}{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    each = (values.astype(np.int64)[..., None] >> shifts & 1).reshape(len(values), -1)
    return np.packbits(each.astype(np.uint8), axis=1).tobytes()


def tiff(
    samples: np.ndarray,
    photometric: int | None,
    bits: int = 8,
    *,
    order: str = "<",
    planar: int = 1,
    layout: str = "strip",
    deflate: bool = False,
    fill: int = 1,
    more: Iterable[Tag] = (),
) -> bytes:
    """A TIFF of [height, width, samples] in one strip, in strips of three rows, or in tiles of 16 x 16."""
    height, width, count = samples.shape
    rows, columns = {"strip": (height, width), "strips": (3, width), "tiles": (16, 16)}[layout]
    planes = [samples] if planar == 1 else [samples[..., i : i + 1] for i in range(count)]
    parts = []
    for plane in planes:
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                block = plane[y : y + rows, x : x + columns]
                if layout == "tiles":
                    block = np.pad(block, ((0, 16 - len(block)), (0, 0), (0, 0)))
                data = packed(block.reshape(len(block), -1), bits, order)
                if fill == 2:
                    data = np.packbits(
                        np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little"
                    ).tobytes()
                parts.append(zlib.compress(data) if deflate else data)
    tags: list[Tag] = [(256, 3, [width]), (257, 3, [height]), (258, 3, [bits] * count), (277, 3, [count])]
    tags += [(259, 3, [8 if deflate else 1]), (284, 3, [planar]), (266, 3, [fill]), *more]
    tags += [] if photometric is None else [(262, 3, [photometric])]
    tags += [(322, 3, [16]), (323, 3, [16])] if layout == "tiles" else [(278, 3, [rows])]
    return document(tags, parts, order, (324, 325) if layout == "tiles" else (273, 279))


def document(tags: list[Tag], parts: list[bytes], order: str, at: tuple[int, int]) -> bytes:
    """A TIFF file of tags and of strips or tiles, whose offsets and lengths are the tags `at`."""
    tags = sorted([*tags, (at[0], 4, [0] * len(parts)), (at[1], 4, [len(part) for part in parts])])
    lengths = {tag: {3: 2, 4: 4}[kind] * len(values) for tag, kind, values in tags}
    outside = 8 + 2 + 12 * len(tags) + 4
    first = outside + sum(length for length in lengths.values() if length > 4)
    entries, rest = struct.pack(f"{order}H", len(tags)), b""
    for tag, kind, values in tags:
        if tag == at[0]:
            values = [first + sum(map(len, parts[:number])) for number in range(len(parts))]
        data = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        where = struct.pack(f"{order}I", outside + len(rest)) if len(data) > 4 else data.ljust(4, b"\0")
        rest += data if len(data) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + where
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8) + entries + bytes(4) + rest + b"".join(parts)


def over_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colors * alpha + 1 - alpha


def expected_of(
    values: np.ndarray, photometric: int, extra: tuple[int, ...], palette: np.ndarray
) -> np.ndarray:
    """RGB, of 1, that a reader of the TIFF specification gets from samples of 1."""
    if photometric in (0, 1):
        gray = 1 - values[..., :1] if photometric == 0 else values[..., :1]
        colors, base = np.repeat(gray, 3, axis=-1), 1
    elif photometric == 2:
        colors, base = values[..., :3], 3
    elif photometric == 3:
        index = np.rint(values[..., 0] * (len(palette) - 1)).astype(int)
        colors, base = palette[index] // 256 / 255, 1
    else:
        colors, base = (1 - values[..., :3]) * (1 - values[..., 3:4]), 4
    if extra[:1] == (1,):
        return colors + 1 - values[..., base : base + 1]  # already multiplied by alpha
    alpha = extra[:1] in ((2,), (999,)) or (photometric == 2 and values.shape[-1] == 4 and not extra)
    return over_white(colors, values[..., base : base + 1]) if alpha else colors


def tiffs(whole: bool) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """A file of every form that Pillow opens, in each layout; of a few layouts unless `whole`."""
    colormap = np.random.default_rng(0).integers(0, 65536, (256, 3))
    for key in OPEN_INFO:
        prefix, photometric, (form,), fill, every, extra = key
        bits, count = every[0], len(every)
        if photometric in (6, 8):
            continue
        values = PARTS[..., [0, 1, 2, 3, 0, 1][:count]]
        samples = values.astype(np.float32)
        if form != 3:
            most = 2 ** (bits - (form == 2)) - 1
            samples = np.rint(values * most).astype(np.int64)
            if extra[:1] == (1,):
                base = 1 if photometric == 1 else 3
                samples[..., :base] = samples[..., :base] * values[..., base : base + 1]
            values = samples / most
        palette = colormap[: 2**bits] if photometric == 3 else colormap
        more: list[Tag] = [(338, 3, extra)] if extra else []
        more += [(339, 3, [form] * count)] if form != 1 else []
        more += [(320, 3, palette.T.ravel().tolist())] if photometric == 3 else []
        expected = 255 * np.clip(expected_of(values, photometric, extra, palette), 0, 1)
        for planar in (1, 2) if count > 1 else (1,):
            for deflate in (False, True):
                for layout in ("strip", "strips", "tiles") if whole else ("strips",):
                    order = "<" if prefix == b"II" else ">"
                    data = tiff(
                        samples,
                        photometric,
                        bits,
                        order=order,
                        planar=planar,
                        layout=layout,
                        deflate=deflate,
                        fill=fill,
                        more=more,
                    )
                    yield f"{key} planar {planar} deflate {deflate} {layout}", data, expected


def check_tiffs(whole: bool) -> None:
    found = {name: error_of(data, expected) for name, data, expected in tiffs(whole)}
    assert {name: error for name, error in found.items() if isinstance(error, float) and error > 2} == {}
    assert sum(isinstance(error, float) for error in found.values()) > 0.55 * len(found)


def test_no_form_of_tiff_gives_other_pixels() -> None:
    check_tiffs(whole=False)


@pytest.mark.slow
def test_no_form_of_tiff_gives_other_pixels_in_any_layout() -> None:
    check_tiffs(whole=True)


def test_forms_of_tiff_that_are_refused_by_name() -> None:
    deep = (RED.astype(int) * 257)[..., None]
    check_right(tiff(deep, 1, 16), GRAY)
    check_refused(tiff(65535 - deep, 0, 16), "gray of 16 bits where 0 is white")
    planes = RGB.astype(int) * 257
    check_refused(tiff(planes, 2, 16, planar=2), "separate planes of a rare kind (3 of 16 bits)")
    check_right(tiff(planes, 2, 16, planar=2, deflate=True), RGB)
    colormap = [(320, 3, PALETTE.T.ravel().tolist())]
    check_refused(tiff(RED[..., None], 3, more=colormap), "colors of a palette of 8 bits")
    inks = np.dstack([RGB, RED])
    check_right(tiff(inks, 5), (255 - RGB.astype(int)) * (255 - RED[..., None].astype(int)) / 255)
    check_refused(tiff(inks, 5, more=[(332, 3, [2])]), "inks other than CMYK")
    check_refused(tiff(RED[..., None], None), "PhotometricInterpretation is missing")
    check_refused(tiff(RGB, 2, more=[(254, 4, [1])]), "preview of another image")
    check_refused(tiff(RED[..., None], 1, more=[(254, 4, [4])]), "mask of another image")
    check_refused(tiff(RGB, 6), "YCbCr without compression")  # 2 x 2 pixels share colors by default
    check_refused(tiff(RGB, 8, planar=2), "separate planes of a rare kind")


def test_a_tiff_of_twelve_bits_has_a_white_of_its_own() -> None:
    data = tiff(np.rint(PARTS[..., :1] * 4095).astype(int), 1, 12)
    for white_level in (65535, 1023):
        check_right(
            data, GRAY, Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest", white_level=white_level)
        )


def test_integers_without_a_known_white_need_one() -> None:
    values = np.rint(PARTS[..., :1] * 4095).astype(int)
    stated = Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest", white_level=4095)
    for bits, form in ((16, 2), (32, 1), (32, 2)):
        more: list[Tag] = [(339, 3, [form])] if form != 1 else []
        check_refused(tiff(values, 1, bits, more=more), f"integers of {bits} bits, whose white is unknown")
        check_right(tiff(values, 1, bits, more=more), GRAY, stated)
    big_endian = tiff(values, 1, 16, order=">", deflate=True, more=[(339, 3, [2])])
    check_refused(big_endian, "whose white is unknown", stated)  # Pillow swaps the bytes of these twice


def png(bits: int, color: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, 0)
    lines = [packed(row.reshape(1, -1), bits) for row in rows]
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    every = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in every
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_white(bits: int) -> None:
    most = 2**bits - 1
    values = np.rint(PARTS[..., 0] * most).astype(int)
    shown = np.dstack([values * 255 / most] * 3)
    check_right(png(bits, 0, values), shown)
    for clear in (0, most, int(values[0, 20])):
        data = png(bits, 0, values, (b"tRNS", struct.pack(">H", clear)))
        check_right(data, np.where(values[..., None] == clear, 255, shown))


def test_forms_of_png_that_are_refused_by_name() -> None:
    deep = RGB.astype(int) * 257
    check_right(png(16, 2, deep), RGB)
    check_refused(png(16, 2, deep, (b"tRNS", bytes(6))), "16 bits per color and a transparent color")
    app = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 4) + b"CgBI" + bytes(4)
    app += struct.pack(">I", zlib.crc32(b"CgBI" + bytes(4)))
    check_refused(app + png(8, 2, RGB)[8:], "PNG of an iPhone app")
    stated = Preprocess(size=(HEIGHT, WIDTH), white_level=4095)
    data = png(16, 0, RED.astype(int) * 257, (b"sBIT", b"\x0c"))
    check_refused(data, "it states 12 significant bits", stated)
    check_right(data, GRAY)


@pytest.mark.parametrize(("bits", "color"), [(1, 0), (8, 0), (8, 2), (8, 3), (16, 0), (8, 6)])
def test_a_png_whose_pixels_end_early_is_refused(bits: int, color: int) -> None:
    """Pillow shows the rows that are missing as black."""
    channels = {2: 3, 6: 4}.get(color, 1)
    values = np.dstack([RED] * channels).astype(int) >> max(8 - bits, 0)
    palette = ((b"PLTE", PALETTE.tobytes()),) if color == 3 else ()
    for rows in (1, HEIGHT // 2, HEIGHT - 1):
        check_refused(png(bits, color, values[:rows], *palette), "its pixels end early")
    assert not isinstance(error_of(png(bits, color, 0 * values, *palette), GRAY), str)


def test_an_interlaced_png_whose_pixels_end_early_is_refused() -> None:
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    each = [RED[top::down, left::right] for top, left, down, right in passes]
    lines = [b"".join(b"\0" + row.tobytes() for row in part) for part in each]
    for end in range(1, 8):
        file = png(8, 0, RED.astype(int))
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 1)
        file = file[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        for name, part in ((b"IDAT", zlib.compress(b"".join(lines[:end]))), (b"IEND", b"")):
            file += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        if end == 7:
            check_right(file, GRAY)
        else:
            check_refused(file, "its pixels end early")


def test_a_png_without_the_palette_of_its_pixels_is_damaged() -> None:
    check_refused(png(8, 3, RED.astype(int)), "its data are damaged")


@pytest.mark.parametrize("most", [1, 7, 100, 255, 256, 4095, 65534, 65535])
def test_the_white_of_a_pgm_is_its_own(most: int) -> None:
    """Pillow scales what is below 65,535; a level of the model on top of it would show nearly white."""
    values = np.rint(PARTS[..., 0] * most).astype(int)
    binary = values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    stated = Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest", white_level=1023)
    for data in (
        b"P5\n48 40\n%d\n" % most + binary,
        b"P2\n48 40\n%d\n" % most + b" ".join(b"%d" % value for value in values.ravel()),
    ):
        check_right(data, np.dstack([255 * values / most] * 3))
        if most < 65535:
            check_right(data, np.dstack([255 * values / most] * 3), stated)
        else:  # 10 bits in a file of 16, as the level says
            check_right(data, np.dstack([255 * np.minimum(values, 1023) / 1023] * 3), stated)


def jpeg2000(depth: int, *, sign: int = 0, step: int = 1, image: Image.Image | None = None) -> bytes:
    """A codestream of Pillow whose header states something else."""
    data = bytearray(encoded(image or Image.fromarray(RED.astype(np.uint16) * 257), "JPEG2000", no_jp2=True))
    data[42:45] = bytes((depth - 1 | sign, step, step))
    return bytes(data)


def test_the_white_of_a_jpeg_2000_is_its_own() -> None:
    data = encoded(Image.fromarray(RED.astype(np.uint16) * 257), "JPEG2000")
    check_right(data, GRAY)
    stated = Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest", white_level=4095)
    twelve = jpeg2000(12)  # 12 bits, of which Pillow makes 16
    with Image.open(io.BytesIO(twelve)) as image:
        image.load()
        found = np.minimum(np.asarray(image, float) / (4095 * 16) * 255, 255)
    check_right(twelve, np.dstack([found] * 3), stated)
    for bad in (jpeg2000(4), jpeg2000(16, sign=0x80), jpeg2000(16, step=2)):
        check_refused(bad, "JPEG 2000 of a rare kind")


def test_colors_of_jpeg_2000_are_known_or_refused() -> None:
    image = Image.fromarray(np.dstack([RGB, TOP]))
    data = encoded(image, "JPEG2000")
    check_right(data, OVER_WHITE)
    at = data.index(b"cdef")
    for where, value in (
        (at + 6 + 1, 2),
        (at + 6 + 5, 3),
        (at + 6 + 18 + 3, 2),
    ):  # order, and premultiplied alpha
        check_refused(data[:where] + bytes([value]) + data[where + 1 :], "JPEG 2000 of a rare kind")
    at = data.index(b"colr") + 7
    for color in (12, 14, 99):
        check_refused(data[: at + 3] + bytes([color]) + data[at + 4 :], "JPEG 2000 of a rare kind")
    check_refused(encoded(image, "JPEG2000", no_jp2=True), "JPEG 2000 of a rare kind")  # alpha, or ink?
    check_right(encoded(Image.fromarray(RGB).convert("YCbCr"), "JPEG2000"), RGB)


def test_a_cmyk_jpeg_without_adobes_marker_is_refused() -> None:
    inks = Image.fromarray(np.dstack([255 - RGB, np.full_like(RED, 30)]), "CMYK")
    data = encoded(inks, "JPEG", quality=100)
    check_right(data, np.asarray(inks.convert("RGB")))
    at = data.index(b"Adobe") - 4
    check_refused(data[:at] + data[at + 16 :], "CMYK without Adobe's marker")


def test_rgb_jpegs_are_seen_as_such() -> None:
    check_right(encoded(Image.fromarray(RGB), "JPEG", quality=100, keep_rgb=True), RGB)


def bmp(
    bits: int,
    rows: Sequence[bytes],
    *,
    palette: bytes = b"",
    compression: int = 0,
    colors: int = 0,
    masks: bytes = b"",
) -> bytes:
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    header = struct.pack(
        "<IiiHHIIiiII", 40 + len(masks), WIDTH, HEIGHT, 1, bits, compression, 0, 0, 0, colors, 0
    )
    start = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + masks + palette + data


def test_forms_of_bmp() -> None:
    upside_down = RGB[::-1, :, ::-1]
    check_right(bmp(24, [row.tobytes() for row in upside_down]), RGB)
    two = [row.tobytes() for row in RED[::-1] >> 7]
    black_and_white = bytes((0, 0, 0, 0, 255, 255, 255, 0))
    one_bit = [packed(row[None], 1) for row in RED[::-1] >> 7]
    check_right(bmp(1, one_bit, palette=black_and_white), np.dstack([(RED >> 7) * 255] * 3))
    check_refused(bmp(8, two, palette=black_and_white, colors=2), "8 bits per pixel and few grays")
    four = [packed(row[None], 4) for row in RED[::-1] >> 7]
    check_refused(bmp(4, four, palette=black_and_white, colors=2), "4 bits per pixel and few grays")
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    half = [row.tobytes() for row in np.dstack([upside_down, TOP[::-1]])]
    check_right(bmp(32, half, compression=3, masks=masks), OVER_WHITE)
    blank = [row.tobytes() for row in np.dstack([upside_down, 0 * TOP])]
    check_refused(bmp(32, blank, compression=3, masks=masks), "its alpha is 0 everywhere")
    masks = struct.pack("<IIII", 0x7C00, 0x3E0, 0x1F, 0x8000)
    check_refused(
        bmp(16, [bytes(2 * WIDTH)] * HEIGHT, compression=3, masks=masks), "16 bits per pixel and alpha"
    )


def tga(kind: int, depth: int, data: bytes, flags: int) -> bytes:
    return struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, WIDTH, HEIGHT, depth, flags) + data


def test_alpha_of_tga_is_what_its_header_says() -> None:
    data = np.dstack([RGB[..., ::-1], TOP]).tobytes()
    check_right(tga(2, 32, data, 0x28), OVER_WHITE)
    check_right(tga(2, 32, data, 0x20), RGB)  # no bits of alpha
    check_right(tga(3, 16, np.dstack([RED, TOP]).tobytes(), 0x20), GRAY)
    check_refused(tga(2, 32, data, 0x23), "TGA of a rare kind")
    check_refused(tga(2, 16, bytes(2 * RED.size), 0x21), "TGA of a rare kind")
    check_refused(tga(2, 24, bytes(RGB.size), 0x60), "TGA of a rare kind")


def test_alpha_of_tga_that_is_stated_twice() -> None:
    data = tga(2, 32, np.dstack([RGB[..., ::-1], TOP]).tobytes(), 0x28)
    for kind in range(5):
        extension = struct.pack("<H", 495).ljust(494, b"\0") + bytes([kind])
        footer = struct.pack("<II", len(data), 0) + b"TRUEVISION-XFILE.\0"
        if kind == 3:  # useful alpha, and not premultiplied
            check_right(data + extension + footer, OVER_WHITE)
        else:
            check_refused(data + extension + footer, f"alpha of kind {kind}")
    check_right(data + bytes(8) + b"TRUEVISION-XFILE.\0", OVER_WHITE)  # no extension


def test_a_pcx_without_compression_is_refused() -> None:
    data = encoded(Image.fromarray(RGB), "PCX")
    check_right(data, RGB)
    rows = np.moveaxis(RGB, 2, 1).tobytes()  # lines of red, green and blue
    check_refused(data[:2] + b"\0" + data[3:128] + rows, "PCX without compression")


def psd(mode: int, bits: int, *channels: bytes) -> bytes:
    header = struct.pack(">H6xHIIHH", 1, len(channels), HEIGHT, WIDTH, bits, mode)
    return b"8BPS" + header + bytes(12 + 2) + b"".join(channels)


def test_forms_of_psd() -> None:
    colors = [channel.tobytes() for channel in (RED, GREEN, BLUE)]
    check_right(psd(3, 8, *colors), RGB)
    check_right(psd(3, 8, *colors, TOP.tobytes()), RGB)  # a selection, or over white already
    check_right(psd(1, 8, RED.tobytes()), GRAY)
    lab = [np.full_like(RED, 150), RED, GREEN]
    signed = np.dstack([lab[0], lab[1] - np.uint8(128), lab[2] - np.uint8(128)])
    check_right(psd(9, 8, *(channel.tobytes() for channel in lab)), SEE(tiff(signed, 8)))
    for mode, bits in ((0, 1), (7, 8)):  # 1 is black, and inks
        check_refused(psd(mode, bits, RED.tobytes()), "PSD of a rare kind")


def ico(data: bytes, bits: int) -> bytes:
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", WIDTH, HEIGHT, 0, 0, 1, bits, len(data), 22) + data


def test_forms_of_icons() -> None:
    mask = b"".join(np.packbits(np.pad(row == 0, (0, 16))).tobytes() for row in TOP[::-1])

    def bitmap(bits: int, pixels: np.ndarray) -> bytes:
        header = struct.pack("<IiiHHIIiiII", 40, WIDTH, 2 * HEIGHT, 1, bits, 0, 0, 0, 0, 0, 0)
        return header + pixels.tobytes() + mask

    upside_down = RGB[::-1, :, ::-1]
    check_right(ico(bitmap(24, upside_down), 24), OVER_WHITE)
    check_right(ico(bitmap(32, np.dstack([upside_down, TOP[::-1]])), 32), OVER_WHITE)
    check_refused(ico(bitmap(32, np.dstack([upside_down, TOP[::-1]])), 0), "two numbers of bits per pixel")
    check_refused(ico(bitmap(32, np.dstack([upside_down, 0 * TOP])), 32), "its alpha is 0 everywhere")
    palette = (b"PLTE", PALETTE.tobytes())
    check_right(ico(png(8, 3, RED, palette), 8), PALETTE[RED])
    check_refused(ico(png(8, 3, RED, palette, (b"tRNS", b"\0")), 8), "icon with transparent colors")
    mac = Image.fromarray(RGB[:32, :32]).resize((128, 128), Image.Resampling.NEAREST)
    icon = encoded(mac, "ICNS")
    check_right(icon, np.asarray(mac), Preprocess(size=(128, 128), interpolation="nearest"))


def gif(top: int, height: int, control: bytes = b"") -> bytes:
    """A GIF whose first frame is some rows, each pixel in a code of its own."""
    codes = "".join(
        (f"{16:05b}"[::-1] if number % 12 == 0 else "") + f"{int(value):05b}"[::-1]
        for number, value in enumerate((RED[top : top + height] >> 4).ravel())
    )
    codes += f"{17:05b}"[::-1]
    data = np.packbits([int(bit) for bit in codes], bitorder="little").tobytes()
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    frame = b"," + struct.pack("<HHHHB", 0, top, WIDTH, height, 0) + b"\x04" + blocks + b"\0;"
    screen = struct.pack("<HHBBB", WIDTH, HEIGHT, 0xF3, 5, 0) + PALETTE[:16].tobytes()
    return b"GIF89a" + screen + control + frame


def test_a_first_frame_of_a_gif_that_covers_a_part() -> None:
    shown = PALETTE[RED >> 4]
    check_right(gif(0, HEIGHT), shown)
    check_refused(gif(10, 20), "its first frame covers a part")
    clear = b"!\xf9\x04\x01\0\0\x03\0"  # color 3 is transparent, and so is the rest
    inside = ((RED >> 4) != 3) & (ROWS >= 10) & (ROWS < 30)
    check_right(gif(10, 20, clear), np.where(inside[..., None], shown, 255))


def test_a_gif_without_colors_is_refused() -> None:
    data = gif(0, HEIGHT)
    check_refused(data[:10] + b"\x73" + data[11:13] + data[13 + 48 :], "GIF without colors")
    ramp = bytes(np.repeat(np.arange(16), 3).astype(np.uint8))  # Pillow drops one of its own grays
    check_right(data[:13] + ramp + data[13 + 48 :], np.dstack([RED >> 4] * 3))


def test_sixteen_bits_of_which_pillow_gives_eight_have_no_white_level() -> None:
    stated = Preprocess(size=(HEIGHT, WIDTH), white_level=4095)
    sgi = struct.pack(">hBBHHHHII", 474, 0, 2, 2, WIDTH, HEIGHT, 1, 0, 65535).ljust(512, b"\0")
    gray = (RED[::-1].astype(">u2") * 257).astype(">u2").tobytes()
    deep = RGB.astype(np.uint16) * 257
    files = [sgi + gray, b"P6\n48 40\n65535\n" + deep.astype(">u2").tobytes()]
    files += [tiff(deep.astype(int), 2, 16), png(16, 4, np.dstack([RED, RED]).astype(int) * 257)]
    for data in files:
        assert not isinstance(error_of(data, GRAY), str)
        check_refused(data, "16 bits per color", stated)
    eight = encoded(Image.new("RGB", (160, 16)), "BMP")  # 16 in the size is none in the depth
    assert stated(eight).shape == (HEIGHT, WIDTH, 3)


def test_formats_that_nobody_compared_are_refused_and_not_looked_for() -> None:
    xbm = b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {\n0x0f};\n"
    check_refused(xbm, "it is XBM, of which Pillow may make other pixels")
    for form in ("DDS", "SPIDER"):
        image = Image.fromarray(RED.astype(np.float32)) if form == "SPIDER" else Image.fromarray(RGB)
        check_refused(encoded(image, form), f"it is {form}, ")
    suffixes = image_suffixes()
    assert ".mpo" in suffixes  # photos of two lenses, which open as JPEG
    assert suffixes.isdisjoint({".dds", ".xbm", ".fli", ".cur", ".fits", ".eps", ".pdf"})
    assert suffixes >= {".bmp", ".tga", ".jp2", ".avif", ".psd", ".ico", ".icns", ".qoi", ".pgm"}


def test_an_image_that_the_caller_has_opened_is_checked_until_it_is_decoded() -> None:
    data = tiff((RED.astype(int) * 257)[..., None], 0, 16)
    with Image.open(io.BytesIO(data)) as image:
        with pytest.raises(ImageError, match="0 is white"):
            SEE(image)
        image.load()  # from here on its pixels are the caller's
        assert SEE(image).shape == RGB.shape


def test_a_decoded_image_whose_file_stated_its_white_has_no_white_level() -> None:
    """Pillow has scaled its values by the file: a level of the model on top of it would show nearly white."""
    stated = Preprocess(size=(HEIGHT, WIDTH), interpolation="nearest", white_level=4095)
    gray = (RED.astype(">u2") * 16).tobytes()
    deep = Image.fromarray(RED.astype(np.uint16) * 257)
    for data in (b"P5\n48 40\n4095\n" + gray, encoded(deep, "JPEG2000")):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert SEE(image).shape == RGB.shape
            with pytest.raises(ImageError, match="pass its file"):
                stated(image)
            assert stated(image.copy()).shape == RGB.shape  # a copy has no file
