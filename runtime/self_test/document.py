"""The self-test in a model file: a second JSON document, untrusted like the first one.

docs/reference/model-file.md describes every field for other languages.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..images.preprocess import Pixels
from ..model_file.metadata import SELF_TEST_KEY, ArtifactError
from ..model_file.targets import CpuKind
from ..strict_json import parse_json, read_field
from .made_images import MOST_EDGE, make_image

if TYPE_CHECKING:
    import numpy.typing as npt  # slow to import

    Rows = npt.NDArray[np.float32]

__all__ = ["SELF_TEST_KEY", "Answers", "SelfTest", "TestImage"]

SELF_TEST_VERSION = 1
MOST_BYTES = 200_000  # of the document
MOST_IMAGES = 16
MOST_COLUMNS = 2_000  # of an output
MEANS_SHAPE = (8, 8, 3)  # rows and columns of blocks, RGB
_SHA256 = re.compile("[0-9a-f]{64}")
BEST = 3  # classes of an image in `top`


@dataclass(frozen=True, kw_only=True)
class TestImage:
    """An image of the self-test before preprocessing: made by the recipe, or a JPEG."""

    __test__ = False  # pytest: no test class
    made: int | None = None  # seed of `make_image`
    size: tuple[int, int] | None = None  # (height, width) of a made image
    jpeg: bytes | None = field(default=None, repr=False)

    def open(self) -> Pixels | bytes:
        """Return what `Preprocess` takes: uint8 [height, width, 3], or the bytes of the JPEG."""
        if self.made is None or self.size is None:
            assert self.jpeg is not None  # one of both is there
            return self.jpeg
        return make_image(self.made, *self.size)


@dataclass(frozen=True)
class Answers:
    """One output on the exporting machine's CPU, by image: float32 [images, columns]."""

    file: Rows = field(repr=False)  # of the file that holds the self-test
    float32: Rows = field(repr=False)  # of the float32 file of the same export


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Test images, and what the exporting machine answered for them, one image per run."""

    images: tuple[TestImage, ...]
    pixels: tuple[str, ...] = field(repr=False)  # SHA-256 of each image after preprocessing, uint8 [H, W, 3]
    means: tuple[Pixels | None, ...] = field(repr=False)  # of JPEGs only: means of 8 x 8 blocks of the same
    columns: tuple[int, ...] | None = field(repr=False)  # classes of the logits that are kept; None: all
    outputs: Mapping[str, Answers]  # "logits", "embedding" or both
    top: tuple[tuple[tuple[int, str], ...], ...]  # class index and label of the best three, by image
    kernels: Mapping[str, int]  # kernels of linear layers and attention products that ran, by operator
    cpu: Mapping[str, str]  # kind (`CpuKind`) and name of the exporting machine's CPU
    runtime: str  # "onnxruntime" and its version
    latency_ms: Mapping[str, float]  # median of one image on one thread: file, float32

    def keep_columns(self, output: str, rows: Rows) -> Rows:
        """Return the columns of an output, float32 [N, features], that `outputs` holds of it."""
        if output == "logits" and self.columns is not None:
            return rows[:, list(self.columns)]
        return rows[:, : self.outputs[output].file.shape[1]]

    def to_json(self) -> str:
        """Return the JSON document.

        Raises:
            ArtifactError: when it is larger than a self-test may be.
        """
        document = {
            "version": SELF_TEST_VERSION,
            "images": [
                {"made": each.made, "size": each.size} if each.jpeg is None else {"jpeg": _encode(each.jpeg)}
                for each in self.images
            ],
            "pixels": self.pixels,
            "means": [None if each is None else _encode(each.tobytes()) for each in self.means],
            "columns": self.columns,
            "outputs": {
                name: {which: _encode(rows.astype("<f4").tobytes()) for which, rows in vars(each).items()}
                for name, each in self.outputs.items()
            },
            "top": self.top,
            "kernels": dict(self.kernels),
            "cpu": dict(self.cpu),
            "runtime": self.runtime,
            "latency_ms": dict(self.latency_ms),
        }
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        _check_size(text)
        return text

    @staticmethod
    def from_json(text: str, outputs: Mapping[str, int]) -> SelfTest:
        """Return the self-test in a document that `to_json` has written.

        Args:
            text: the document.
            outputs: features of each output of the model (`Metadata.outputs`).

        Raises:
            ArtifactError: when the document is not one that `to_json` writes for such a model.
        """
        try:
            _check_size(text)
            return _read(parse_json(text), outputs)
        except ValueError as error:
            raise ArtifactError(f"its self-test is not usable: {error}; export the model again") from error


_FIELDS = ("version", *(each.name for each in fields(SelfTest)))
_BY_IMAGE = ("images", "pixels", "means", "top")


def average_blocks(pixels: Pixels) -> Pixels:
    """Return the means of 8 x 8 blocks of an image, rounded half up: uint8 [8, 8, 3].

    Block i of 8 begins at row i * height // 8 and ends before that of the next, but has a row at least.

    Args:
        pixels: uint8 [height, width, 3].
    """
    means = np.empty(MEANS_SHAPE, np.uint8)
    edges = [
        [(i * edge // 8, max((i + 1) * edge // 8, i * edge // 8 + 1)) for i in range(8)]
        for edge in pixels.shape[:2]
    ]
    for row, (top, bottom) in enumerate(edges[0]):
        for column, (left, right) in enumerate(edges[1]):
            block = pixels[top:bottom, left:right].reshape(-1, 3).astype(np.int64)
            means[row, column] = (2 * block.sum(0) + len(block)) // (2 * len(block))
    return means


def _check_size(text: str) -> None:
    size = len(text.encode("utf-8", "replace"))
    if size > MOST_BYTES:
        raise ArtifactError(
            f"expected a self-test of at most {MOST_BYTES:,} bytes, found {size:,}; take fewer images"
        )


def _encode(data: bytes) -> str:
    return b64encode(data).decode()


def _expect(holds: bool, what: str, expected: str, found: object) -> None:
    if not holds:
        raise ValueError(f"expected {what} to be {expected}, found {found!r:.60}")


def _decode(text: object, what: str) -> bytes:
    """Return the bytes of base64 in the one form that encoders write."""
    try:
        data = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    _expect(bool(data) and _encode(data) == text, what, "base64", text)
    return data


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _has_keys(value: object, *names: str) -> bool:
    return isinstance(value, dict) and sorted(value) == sorted(names)


def _read(document: Any, outputs: Mapping[str, int]) -> SelfTest:
    version = read_field(document, "version", int, where="document")
    _expect(version == SELF_TEST_VERSION, "version", f"{SELF_TEST_VERSION} (is vit-edge older?)", version)
    _expect(_has_keys(document, *_FIELDS), "the fields", ", ".join(_FIELDS), sorted(document))
    lists = {name: read_field(document, name, list, where="document") for name in _BY_IMAGE}
    images, classes, columns = (
        tuple(map(_read_image, lists["images"])),
        outputs.get("logits", 0),
        document["columns"],
    )
    for name, values in lists.items():
        sized = 1 <= len(values) <= MOST_IMAGES and len(values) == len(images)
        _expect(sized, f"the number of {name}", f"1 to {MOST_IMAGES}, one per image", len(values))
    for each in lists["pixels"]:
        _expect(isinstance(each, str) and bool(_SHA256.fullmatch(each)), "pixels", "SHA-256 digits", each)
    if columns is not None:
        rising = isinstance(columns, list) and all(_is_whole(each, 0, classes - 1) for each in columns)
        holds = rising and columns == sorted(set(columns)) and 1 <= len(columns) <= MOST_COLUMNS
        _expect(
            holds,
            "columns",
            f"null, or up to {MOST_COLUMNS:,} rising indices of {classes:,} classes",
            columns,
        )
    return SelfTest(
        images=images,
        pixels=tuple(lists["pixels"]),
        means=tuple(map(_read_means, lists["means"], images)),
        columns=None if columns is None else tuple(columns),
        outputs=_read_outputs(document["outputs"], outputs, len(images), columns),
        top=tuple(_read_top(each, classes) for each in lists["top"]),
        **_read_machine(document),
    )


def _read_image(entry: Any) -> TestImage:
    if _has_keys(entry, "jpeg"):
        return TestImage(jpeg=_decode(entry["jpeg"], "jpeg"))
    _expect(_has_keys(entry, "made", "size"), "an image", "made and size, or jpeg", entry)
    seed, size = entry["made"], entry["size"]
    _expect(_is_whole(seed, 0, 2**32 - 1), "made", "0 to 4294967295", seed)
    sized = isinstance(size, list) and len(size) == 2 and all(_is_whole(edge, 1, MOST_EDGE) for edge in size)
    _expect(sized, "size", f"[height, width], each 1 to {MOST_EDGE}", size)
    return TestImage(made=seed, size=(size[0], size[1]))


def _read_means(entry: object, image: TestImage) -> Pixels | None:
    if image.jpeg is None:
        _expect(entry is None, "the means of a made image", "null", entry)
        return None
    data = np.frombuffer(_decode(entry, "means"), np.uint8)
    _expect(data.size == np.prod(MEANS_SHAPE), "means", f"{np.prod(MEANS_SHAPE)} bytes", data.size)
    return data.reshape(MEANS_SHAPE)


def _read_outputs(
    entry: Any, outputs: Mapping[str, int], images: int, columns: list[int] | None
) -> dict[str, Answers]:
    _expect(_has_keys(entry, *outputs), "outputs", ", ".join(outputs), entry)
    found = {}
    for name, features in outputs.items():
        expected = f"file and float32, each {images} finite rows of equal length, up to {features:,} columns"
        _expect(_has_keys(entry[name], "file", "float32"), name, expected, entry[name])
        data = [_decode(entry[name][which], name) for which in ("file", "float32")]
        width = len(data[0]) // (4 * images)
        fits = (
            1 <= width <= min(features, MOST_COLUMNS)
            if name == "embedding"
            else width == len(columns or range(features))
        )
        _expect(fits and all(len(each) == 4 * images * width for each in data), name, expected, len(data[0]))
        rows = [np.frombuffer(each, "<f4").reshape(images, width).astype(np.float32) for each in data]
        _expect(all(np.isfinite(each).all() for each in rows), name, expected, "NaN or infinity")
        found[name] = Answers(*rows)
    return found


def _read_top(entry: Any, classes: int) -> tuple[tuple[int, str], ...]:
    expected = f"{min(BEST, classes)} pairs of a class index and a label"
    _expect(isinstance(entry, list) and len(entry) == min(BEST, classes), "top", expected, entry)
    for pair in entry:
        holds = isinstance(pair, list) and len(pair) == 2 and _is_whole(pair[0], 0, classes - 1)
        _expect(holds and _is_text(pair[1]), "top", expected, pair)
    return tuple((index, label) for index, label in entry)


def _read_machine(document: Any) -> dict[str, Any]:
    kernels, cpu, runtime, latency = (document[name] for name in ("kernels", "cpu", "runtime", "latency_ms"))
    counted = isinstance(kernels, dict) and all(_is_whole(each, 1, 2**31) for each in kernels.values())
    _expect(counted and all(map(_is_text, kernels)), "kernels", "operators with their counts", kernels)
    known = _has_keys(cpu, "kind", "name") and cpu["kind"] in get_args(CpuKind) and _is_text(cpu["name"])
    _expect(known, "cpu", "kind and name", cpu)
    _expect(_is_text(runtime), "runtime", "text", runtime)
    timed = _has_keys(latency, "file", "float32") and all(
        type(each) in (int, float) and 0 < each < float("inf") for each in latency.values()
    )
    _expect(timed, "latency_ms", "file and float32, above 0", latency)
    return {"kernels": kernels, "cpu": cpu, "runtime": runtime, "latency_ms": latency}
