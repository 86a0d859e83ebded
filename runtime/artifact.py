"""A deployable model file: an .onnx that carries, as one JSON document, all that is needed to use it.

An artefact is untrusted input: it is checked before ONNX Runtime sees it, and a file that is replaced between
the check and the load is noticed. (Loading the checked bytes would cost their size again at the peak.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from mmap import mmap
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from runtime.errors import InputError
from runtime.onnx_file import OnnxError, summarise
from runtime.preprocess import Preprocess
from runtime.targets import EXACT_ON, CpuKind, Target, unknown_target
from runtime.text import one_line

METADATA_KEY = "vit_edge"
METADATA_VERSION = 2
MAX_BYTES = 2**31 - 1  # what a protobuf can hold
MAX_METADATA = 2**24  # characters; 100,000 labels take 2 million

Variant = Literal["float32", "float16", "int8"]
FILE_NAMES: dict[Variant, str] = {
    "float32": "model.onnx",
    "float16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}


class ArtifactError(InputError):
    """A model file that cannot or must not be used: what was expected, what was found, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # parts of it may come from the file


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a model file says about itself.

    Raises:
        ArtifactError: for values that describe no model of ours.
    """

    variant: Variant
    preprocess: Preprocess
    labels: tuple[str, ...] = field(repr=False)  # by class index; they need not be unique
    target: Target = "any-cpu"  # the form of INT8 weights; without any, every CPU is as good
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)  # where it came from (JSON values)
    measured: Mapping[str, Any] = field(
        default_factory=dict, repr=False
    )  # at export: its drift, among others
    producer: str = "vit-edge"

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            choices = ", ".join(get_args(Variant))
            raise ArtifactError(f"variant must be one of {choices}, found {self.variant!r}")
        if self.target not in get_args(Target):
            raise ArtifactError(unknown_target(self.target))
        if not isinstance(self.preprocess, Preprocess):
            raise ArtifactError(f"preprocess must be a Preprocess, found {type(self.preprocess).__name__}")
        if not isinstance(self.labels, tuple) or not self.labels:
            raise ArtifactError("labels must be a list of at least one name")
        if not all(map(_is_text, self.labels)):
            raise ArtifactError("labels must be text, every one of them")
        if not _is_text(self.producer):
            raise ArtifactError(f"producer must be text, found {self.producer!r}")
        for name in ("source", "measured"):
            if not isinstance(getattr(self, name), Mapping):
                raise ArtifactError(f"{name} must be a JSON object")

    @property
    def exact_on(self) -> tuple[CpuKind, ...]:
        """The kinds of CPU on which a session with default options is exact and fast.

        On kind "x86" any other file needs `session.x64quantprecision=1`, which is exact and slower.
        """
        return EXACT_ON[self.target]

    def to_json(self) -> str:
        """The document that goes into the file, under `METADATA_KEY`.

        Raises:
            ArtifactError: when `source` or `measured` hold what JSON cannot (NaN included).
        """
        plain = dict(
            preprocess=self.preprocess.to_dict(), source=dict(self.source), measured=dict(self.measured)
        )
        document = {"version": METADATA_VERSION, "exact_on": self.exact_on}
        document |= {name: getattr(self, name) for name in _FIELDS} | plain
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the metadata cannot be written as JSON: {error}") from error

    @staticmethod
    def from_json(text: str) -> Metadata:
        """The inverse of `to_json`.

        Raises:
            ArtifactError: when the document is not exactly one that `to_json` of this version writes.
        """
        document = _parse(text)
        version = document.pop("version", None)
        if isinstance(version, int) and version > METADATA_VERSION:
            raise ArtifactError(
                f"a newer vit-edge wrote it (metadata version {version}, this one reads {METADATA_VERSION}); "
                "upgrade vit-edge"
            )
        if version == 1 and not isinstance(version, bool):
            raise ArtifactError(
                f"an older vit-edge wrote it (metadata version 1, this one reads {METADATA_VERSION}); "
                "export it again"
            )
        if version != METADATA_VERSION or isinstance(version, bool):
            raise ArtifactError(f"metadata version must be {METADATA_VERSION}, found {version!r}")
        expected = {*_FIELDS, "exact_on"}
        if unknown := sorted(set(document) - expected):
            raise ArtifactError(f"its metadata has unknown fields: {', '.join(unknown)}")
        if missing := sorted(expected - set(document)):
            raise ArtifactError(f"its metadata lacks {', '.join(missing)}")
        exact_on = document.pop("exact_on")
        if not isinstance(document["preprocess"], dict):
            raise ArtifactError("preprocess must be a JSON object")
        try:
            preprocess = Preprocess.from_dict(document["preprocess"])
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"its preprocessing is not usable: {error}") from error
        labels = document["labels"]
        labels = tuple(labels) if isinstance(labels, list) else labels
        metadata = Metadata(**{**document, "preprocess": preprocess, "labels": labels})
        if exact_on != list(metadata.exact_on):
            wanted = ", ".join(metadata.exact_on)
            raise ArtifactError(f"exact_on must be {wanted} for target {metadata.target}, found {exact_on!r}")
        return metadata


_FIELDS = tuple(each.name for each in fields(Metadata))


@dataclass(frozen=True)
class Artifact:
    """A model file that was read and found fit to run."""

    path: Path
    metadata: Metadata = field(repr=False)
    sha256: str  # of the file, 64 hexadecimal digits
    _stamp: tuple[int, ...] = field(repr=False)

    def expect_unchanged(self) -> None:
        """To be called after the file was loaded.

        Raises:
            ArtifactError: when it is not the file that was checked.
        """
        if _stamp(self.path.stat()) != self._stamp:
            raise ArtifactError(f"{self.path}: it was replaced while it was opened; open it again")


def read_artifact(path: Path | str, *, sha256: str | None = None) -> Artifact:
    """Read a model file and check all that can be checked without running it.

    Args:
        path: the .onnx file.
        sha256: the digest that the file must have, when the caller knows it.

    Raises:
        ArtifactError: when it is missing, damaged, not ours, not the one asked for, or needs other files.
    """
    path = Path(path)
    data, stamp = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.strip().lower():
        raise ArtifactError(f"{path}: its SHA-256 is {digest}, expected {sha256}; do not use this file")
    try:
        return Artifact(path, _metadata(data), digest, stamp)
    except OnnxError as error:
        raise ArtifactError(
            f"{path}: not an ONNX model, or a damaged one ({error}); copy it again"
        ) from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def read_metadata(path: Path | str) -> Metadata:
    """What a model file says about itself. Checks and errors are those of `read_artifact`."""
    return read_artifact(path).metadata


def choose_file(path: Path | str, preference: tuple[Variant, ...] = ("int8", "float32")) -> Path:
    """The model file that `path` means: itself, or, in a folder, the first variant of `preference` there is.

    Raises:
        ArtifactError: when there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for variant in preference:
        if (candidate := path / FILE_NAMES[variant]).is_file():
            return candidate
    names = " or ".join(FILE_NAMES[variant] for variant in preference)
    raise ArtifactError(f"{path}: no model in this folder; expected {names}, made by python -m export")


def _read(path: Path) -> tuple[mmap, tuple[int, ...]]:
    try:
        if not path.exists():
            raise ArtifactError(f"{path}: there is no such model file; python -m export makes one")
        if not path.is_file():
            raise ArtifactError(f"{path}: expected an .onnx file, found a folder or a device")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_BYTES:
                size = f"{status.st_size:,} bytes, more than an ONNX file can have ({MAX_BYTES:,})"
                raise ArtifactError(f"{path}: {size}")
            # Memory of its own, all of it given back before ONNX Runtime asks for its share: freed bytes of
            # this size make the C library keep more from then on. (Mapping the file itself would kill the
            # process if somebody cut it short meanwhile.)
            data = mmap(-1, max(status.st_size, 1))
            file.readinto(data)
            return data, _stamp(status)
    except OSError as error:
        raise ArtifactError(f"{path}: it cannot be read: {error.strerror or error}") from error


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _metadata(data: mmap) -> Metadata:
    model = summarise(data)
    text = model.metadata.get(METADATA_KEY)
    if text is None:
        raise ArtifactError(
            "an ONNX model, but not made by vit-edge (no metadata); make it with python -m export"
        )
    if model.external_data:
        raise ArtifactError("its weights are in another file, which is not allowed; export it as one file")
    if foreign := sorted(model.domains - {""}):
        raise ArtifactError(
            f"it uses operators that are not standard, of {', '.join(foreign)}; export it again"
        )
    if model.functions or model.subgraphs:
        raise ArtifactError("it holds functions or subgraphs, which no exported model has; export it again")
    return Metadata.from_json(text)


def _is_text(value: object) -> bool:
    """Text that can be written as UTF-8: JSON can say half a surrogate pair."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA:
        raise ArtifactError(f"its metadata has {len(text):,} characters, more than {MAX_METADATA:,}")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"its metadata is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ArtifactError("its metadata is not a JSON object")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
