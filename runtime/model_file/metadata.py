"""Metadata of a model file: one untrusted JSON document.

docs/reference/model-file.md describes every field for other languages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..errors import InputError
from ..images.preprocess import Preprocess
from ..strict_json import parse_json, read_field
from ..text import clean_line
from .targets import EXACT_ON, CpuKind, Target, unknown_target

METADATA_KEY = "vit_edge"
SELF_TEST_KEY = "vit_edge_self_test"  # of a document of its own, which is parsed when it is asked for
METADATA_VERSION = 2
MAX_METADATA = 2**24  # characters; 100,000 labels take 2 million

Variant = Literal["float32", "float16", "int8"]
FileKind = Literal["float32", "float16", "int8", "npu"]  # the variants, and INT8 of target "npu"
Digest = Literal["sha256"]


class ArtifactError(InputError):
    """A model file that cannot or must not be used: what was expected, what was found, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(clean_line(message))  # parts of it may come from the file


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of a model file.

    Raises:
        ArtifactError: for values that describe no model file.
    """

    variant: Variant
    preprocess: Preprocess
    labels: tuple[str, ...] = field(repr=False)  # by class index; they need not be unique
    temperature: float = 1.0  # logits are divided by it before softmax, so that scores are calibrated
    embedding: int | None = None  # features of the second output, float32 [N, D]; None without one
    target: Target = "any-cpu"  # the form of INT8 weights; without any, every CPU is as good
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)  # where it came from (JSON values)
    # at export: its drift, among others
    measured: Mapping[str, Any] = field(default_factory=dict, repr=False)
    producer: str = "vit-edge"
    # How damage to the file that this was read from is found: by its last entry, or not at all
    digest: Digest | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise ArtifactError(unknown_target(self.target))
        variants, labels, embedding = get_args(Variant), self.labels, self.embedding
        named = isinstance(labels, tuple) and all(map(_is_text, labels)) and bool(labels or embedding)
        sized = embedding is None or (type(embedding) is int and embedding > 0)
        scaled = type(self.temperature) in (int, float) and 0.01 <= self.temperature <= 100
        for name, expected, holds in (
            ("variant", f"one of {', '.join(variants)}", self.variant in variants),
            ("preprocess", "a Preprocess", isinstance(self.preprocess, Preprocess)),
            ("embedding", "null or 1 and more", sized),
            ("labels", "a list of at least one name, all of them text; only an embedding has none", named),
            ("producer", "text", _is_text(self.producer)),
            ("digest", "sha256 or null", self.digest in ("sha256", None)),
            ("temperature", "0.01 to 100", scaled),
            ("source", "a JSON object", isinstance(self.source, Mapping)),
            ("measured", "a JSON object", isinstance(self.measured, Mapping)),
        ):
            if not holds:
                raise ArtifactError(f"{name} must be {expected}, found {getattr(self, name)!r:.60}")

    @property
    def outputs(self) -> dict[str, int]:
        """Features of each output of the graph: `logits`, `embedding`, or both in this order."""
        sizes = {"logits": len(self.labels), "embedding": self.embedding or 0}
        return {name: size for name, size in sizes.items() if size}

    @property
    def file_kind(self) -> FileKind:
        """The kind of file in a folder: its variant, or "npu"."""
        return "npu" if self.target == "npu" else self.variant

    @property
    def exact_on(self) -> tuple[CpuKind, ...]:
        """Kinds of CPU on which a session with default options is exact and fast.

        A file without "x86" needs `session.x64quantprecision=1` there, which is exact and slower.
        """
        return EXACT_ON[self.target]

    def to_json(self, *, digest: Digest | None = None) -> str:
        """Return the JSON document that is stored in the file under `METADATA_KEY`.

        Args:
            digest: states that the file ends with its digest, as `export.write_artifact` writes it. (The
                field `digest` is about the file that was read.)

        Raises:
            ArtifactError: when `source` or `measured` hold what JSON cannot (NaN included).
        """
        plain = dict(
            preprocess=self.preprocess.to_dict(), source=dict(self.source), measured=dict(self.measured)
        )
        document = {"version": METADATA_VERSION, "exact_on": self.exact_on}
        document |= {name: getattr(self, name) for name in _FIELDS if name != "digest"} | plain
        if digest is not None:
            document["digest"] = digest
        try:
            return json.dumps(document, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the metadata cannot be written as JSON: {error}") from error

    @staticmethod
    def from_json(text: str) -> Metadata:
        """Return the metadata in a document that `to_json` has written.

        Raises:
            ArtifactError: when the document is not exactly one that `to_json` of this version writes.
        """
        document = _parse(text)
        version = document.pop("version", None)
        if type(version) is not int or version != METADATA_VERSION:
            raise ArtifactError(_describe_version(version))
        expected = {*_FIELDS, "exact_on"}
        if unknown := sorted(set(document) - expected):
            raise ArtifactError(f"its metadata has unknown fields: {', '.join(unknown)}; export it again")
        if missing := sorted(expected - {"digest"} - set(document)):
            raise ArtifactError(f"its metadata lacks {', '.join(missing)}; export it again")
        exact_on = document.pop("exact_on")
        try:
            preprocess = Preprocess.from_dict(read_field(document, "preprocess", dict, where="metadata"))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"its preprocessing is not usable: {error}") from error
        labels = document["labels"]
        labels = tuple(labels) if isinstance(labels, list) else labels
        metadata = Metadata(**{**document, "preprocess": preprocess, "labels": labels})
        if exact_on != list(metadata.exact_on):
            wanted = ", ".join(metadata.exact_on)
            raise ArtifactError(f"exact_on must be {wanted} for target {metadata.target}, found {exact_on!r}")
        return metadata


def _describe_version(found: object) -> str:
    if type(found) is not int or found < 1:
        return f"metadata version must be {METADATA_VERSION}, found {found!r}"
    which, todo = (
        ("a newer", "upgrade vit-edge") if found > METADATA_VERSION else ("an older", "export it again")
    )
    return f"{which} vit-edge wrote it (metadata version {found}, this one reads {METADATA_VERSION}); {todo}"


_FIELDS = tuple(each.name for each in fields(Metadata))


def _is_text(value: object) -> bool:
    """Return whether a value is text that UTF-8 can encode: JSON can hold half a surrogate pair."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA:
        raise ArtifactError(f"its metadata has {len(text):,} characters, more than {MAX_METADATA:,}")
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ArtifactError(f"its metadata is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ArtifactError("its metadata is not a JSON object")
    return document
