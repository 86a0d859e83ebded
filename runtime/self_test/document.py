"""The self-test in a model file: a second JSON document, untrusted like the first one.

docs/reference/model-file.md describes every field for other languages.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from ..images.preprocess import Pixels
from ..model_file.metadata import SELF_TEST_KEY, ArtifactError
from ..model_file.targets import CpuKind
from ..strict_json import parse_json, read_field
from .made_images import MOST_EDGE, make_image

if TYPE_CHECKING:
    import numpy.typing as npt  # slow to import

__all__ = ["SELF_TEST_KEY", "Answers", "SelfTest", "TestImage"]

Rows: TypeAlias = "npt.NDArray[np.float32]"  # [images, features]

SELF_TEST_VERSION = 1
MOST_BYTES = 200_000  # of the document
MOST_IMAGES = 16
MOST_COLUMNS = 2_000  # of an output
MEANS_SHAPE = (8, 8, 3)  # rows and columns of blocks, RGB
BEST = 3  # classes of an image in `top`
_BOTH = ("file", "float32")
# Kernels of linear layers and attention products, by the operator that ONNX Runtime's CPU runs.
INTEGER_KERNELS = frozenset(
    ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearConv", "ConvInteger")
)
FLOAT_KERNELS = frozenset(("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "Conv", "FusedConv", "MatMulNBits"))
_SHA256, _TEXT = re.compile("[0-9a-f]{64}"), re.compile("[^\ud800-\udfff]*")  # no half of a character


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

    def select(self, which: Literal["file", "float32"]) -> Mapping[str, Rows]:
        """Return the answers of one of the two files, by output."""
        return {name: getattr(each, which) for name, each in self.outputs.items()}

    def to_json(self) -> str:
        """Return the JSON document; raise ArtifactError when it is larger than a self-test may be."""
        document = {
            "version": SELF_TEST_VERSION,
            **vars(self),
            "images": [
                {"made": each.made, "size": each.size} if each.jpeg is None else {"jpeg": _encode(each.jpeg)}
                for each in self.images
            ],
            "means": [None if each is None else _encode(each.tobytes()) for each in self.means],
            "outputs": {
                name: {which: _encode(rows.astype("<f4").tobytes()) for which, rows in vars(each).items()}
                for name, each in self.outputs.items()
            },
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
    rows, columns = (
        [slice(i * edge // 8, max((i + 1) * edge // 8, i * edge // 8 + 1)) for i in range(8)]
        for edge in pixels.shape[:2]
    )
    for row, column in np.ndindex(8, 8):
        block = pixels[rows[row], columns[column]].reshape(-1, 3).astype(np.int64)
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


def _decode(text: object, what: str) -> bytes:
    """Return the bytes of base64 in the one form that encoders write."""
    try:
        data = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    _expect(bool(data) and _encode(data) == text, what, "base64", text)
    return data


def _expect(holds: object, what: str, expected: str, found: object) -> None:
    if not holds:
        raise ValueError(f"expected {what} to be {expected}, found {found!r:.60}")


def _fits(value: object, form: Any) -> bool:
    """Return whether a JSON value has a form: a dict or tuple of forms, a pattern, a range, or a test."""
    if isinstance(form, dict):
        return (
            isinstance(value, dict)
            and value.keys() == form.keys()
            and all(map(_fits, value.values(), map(form.get, value)))
        )
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(_fits, value, form))
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    return type(value) is int and value in form if isinstance(form, range) else bool(form(value))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < inf


def _read(document: Any, outputs: Mapping[str, int]) -> SelfTest:
    version = read_field(document, "version", int, where="document")
    _expect(version == SELF_TEST_VERSION, "version", f"{SELF_TEST_VERSION} (is vit-edge older?)", version)
    _expect(sorted(document) == sorted(_FIELDS), "the fields", ", ".join(_FIELDS), sorted(document))
    lengths = {name: len(read_field(document, name, list, where="document")) for name in _BY_IMAGE}
    count, classes, columns = lengths["images"], outputs.get("logits", 0), document["columns"]
    for name, found in lengths.items():
        sized = 1 <= found == count <= MOST_IMAGES
        _expect(sized, f"the number of {name}", f"1 to {MOST_IMAGES}, one per image", found)
    best, cpu = min(BEST, classes), {"kind": lambda kind: kind in get_args(CpuKind), "name": _TEXT}
    kernels = dict.fromkeys(read_field(document, "kernels", dict, where="document"), range(1, 2**31))
    for name, form, expected in (
        ("pixels", (_SHA256,) * count, "SHA-256 digits"),
        ("top", (((range(classes), _TEXT),) * best,) * count, f"{best} pairs of a class index and a label"),
        ("kernels", kernels, "operators with their counts"),
        ("cpu", cpu, "kind and name"),
        ("runtime", _TEXT, "text"),
        ("latency_ms", dict.fromkeys(_BOTH, _is_time), "file and float32, above 0"),
    ):
        _expect(_fits(document[name], form), name, expected, document[name])
    if columns is not None:
        whole = isinstance(columns, list) and _fits(columns, (range(classes),) * len(columns))
        rising = whole and 1 <= len(columns) <= MOST_COLUMNS and columns == sorted(set(columns))
        expected = f"null, or up to {MOST_COLUMNS:,} rising indices of {classes:,} classes"
        _expect(rising, "columns", expected, columns)
    images = tuple(map(_read_image, document["images"]))
    return SelfTest(
        images=images,
        pixels=tuple(document["pixels"]),
        means=tuple(map(_read_means, document["means"], images)),
        columns=columns and tuple(columns),
        outputs=_read_outputs(document["outputs"], outputs, count, columns),
        top=tuple(tuple((index, label) for index, label in each) for each in document["top"]),
        **{name: document[name] for name in ("kernels", "cpu", "runtime", "latency_ms")},
    )


def _read_image(entry: Any) -> TestImage:
    if isinstance(entry, dict) and [*entry] == ["jpeg"]:
        return TestImage(jpeg=_decode(entry["jpeg"], "jpeg"))
    edges = range(1, MOST_EDGE + 1)
    words = f"made (0 to {2**32 - 1}) and size ([height, width], each 1 to {MOST_EDGE}), or jpeg"
    _expect(_fits(entry, {"made": range(2**32), "size": (edges, edges)}), "an image", words, entry)
    return TestImage(made=entry["made"], size=tuple(entry["size"]))


def _read_means(entry: object, image: TestImage) -> Pixels | None:
    if image.jpeg is None:
        _expect(entry is None, "the means of a made image", "null", entry)
        return None
    data = _decode(entry, "means")
    _expect(len(data) == np.prod(MEANS_SHAPE), "means", f"{np.prod(MEANS_SHAPE)} bytes", len(data))
    return np.frombuffer(data, np.uint8).reshape(MEANS_SHAPE)


def _read_outputs(
    entry: Any, outputs: Mapping[str, int], images: int, columns: list[int] | None
) -> dict[str, Answers]:
    form = dict.fromkeys(outputs, lambda both: isinstance(both, dict) and both.keys() == set(_BOTH))
    _expect(_fits(entry, form), "outputs", f"file and float32 of {' and '.join(outputs)}", entry)
    found = {}
    for name, features in outputs.items():
        expected = f"{images} finite rows of equal length, up to {features:,} columns"
        data = [_decode(entry[name][which], name) for which in _BOTH]
        width = len(data[0]) // (4 * images)
        widths = (
            [len(columns or range(features))]
            if name == "logits"
            else range(1, min(features, MOST_COLUMNS) + 1)
        )
        sized = width in widths and all(len(each) == 4 * images * width for each in data)
        _expect(sized, name, expected, f"{len(data[0]):,} and {len(data[1]):,} bytes")
        rows = [np.frombuffer(each, "<f4").reshape(images, width).astype(np.float32) for each in data]
        _expect(np.isfinite(rows).all(), name, expected, "NaN or infinity")
        found[name] = Answers(*rows)
    return found
