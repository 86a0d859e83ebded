"""Read a model file: an .onnx file that holds, as one JSON document, all that is needed to use it.

It is untrusted: it is checked before ONNX Runtime loads it, and a file that is replaced between the check and
the load is refused. (Loading the bytes that were checked would take their size once more at the peak.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from ..images.find_images import is_folder
from .integrity import Digests, check_data, hash_bytes, open_regular_file, read_file_stamp, start_hashing
from .metadata import METADATA_KEY, SELF_TEST_KEY, ArtifactError, FileKind, Metadata, Variant
from .onnx_file import OnnxError, OnnxSummary, summarize_onnx

if TYPE_CHECKING:
    from ..self_test.document import SelfTest

__all__ = ["FILE_NAMES", "METADATA_KEY", "Artifact", "ArtifactError", "FileKind", "Metadata", "Variant"]
__all__ += ["choose_model_file", "read_artifact", "read_metadata"]

MAX_BYTES = 2**31 - 1  # what a protobuf can hold
ORT_FORMAT = b"ORTM"  # at byte 4 of a file in ONNX Runtime's own format
FILE_NAMES: dict[FileKind, str] = {
    "float32": "model.onnx",
    "float16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "npu": "model.npu.onnx",
}


@dataclass(frozen=True)
class Artifact:
    """A model file that has passed every check that needs no run."""

    source: Path | bytes = field(repr=False)
    metadata: Metadata = field(repr=False)
    _digests: Callable[[], Digests] = field(repr=False)
    _stamps: tuple[tuple[Path, tuple[int, ...]], ...] = field(repr=False)  # of each file that was read
    _self_test: str | None = field(repr=False, default=None)

    @property
    def name(self) -> str:
        """The name of the model in messages."""
        return display_name(self.source)

    @property
    def sha256(self) -> str:
        """SHA-256 of the .onnx file, 64 hexadecimal digits; waits until it is computed.

        It covers a second file with weights, too, whose SHA-256 the .onnx file holds.

        Raises:
            ArtifactError: when the digest at the end of the file shows damage.
        """
        try:
            found = self._digests()
        except OSError as error:
            raise _unreadable(self.name, error) from error
        if self.metadata.digest is not None and not found.is_intact:
            raise ArtifactError(
                f"{self.name}: its bytes are not those that were written (it ends with another SHA-256): "
                "it was damaged or changed; copy it again, or export it again"
            )
        return found.sha256

    @cached_property
    def self_test(self) -> SelfTest | None:
        """Test images, and what the exporting machine answered; None in a file without a self-test.

        Raises:
            ArtifactError: when it is damaged, or not of this model.
        """
        if self._self_test is None:
            return None
        from ..self_test.document import SelfTest

        try:
            return SelfTest.from_json(self._self_test, self.metadata.outputs)
        except ArtifactError as error:
            raise ArtifactError(f"{self.name}: {error}") from error

    @property
    def weights(self) -> Path | None:
        """The second file, which holds the weights; None where they are in the .onnx file."""
        return self._stamps[1][0] if len(self._stamps) > 1 else None

    def expect_unchanged(self) -> None:
        """Check, after the file was loaded, that it is still the file that was checked.

        Raises:
            ArtifactError: when it was replaced.
        """
        for path, stamp in self._stamps:
            try:
                same = read_file_stamp(path.stat()) == stamp
            except OSError:
                same = False
            if not same:
                raise ArtifactError(f"{path}: it was replaced while it was opened; open it again")


def display_name(source: Path | str | bytes) -> str:
    """Return the name of a model in messages: its path, or "the model" for bytes."""
    return "the model" if isinstance(source, bytes) else str(source)


def read_artifact(source: os.PathLike[str] | str | bytes, *, sha256: str | None = None) -> Artifact:
    """Read a model file and check all that can be checked without running it.

    Damage that only its digest shows is reported by `Artifact.sha256`; a thread computes it meanwhile.

    Args:
        source: the .onnx file, or its bytes.
        sha256: the SHA-256 that the file must have; None accepts any.

    Raises:
        ArtifactError: when it or its second file is missing or damaged, when it was not made by vit-edge, and
            when its SHA-256 is not `sha256`.
    """
    source = source if isinstance(source, bytes) else Path(source)
    path = display_name(source)
    data, stamp = _read(source) if isinstance(source, Path) else (source, ())
    stamps = ((source, stamp),) if isinstance(source, Path) else ()
    if data[4:8] == ORT_FORMAT:
        raise ArtifactError(
            f"{path}: expected an .onnx file, found ORT format, which is made for one kind of CPU and cannot "
            "be checked before it is opened; use the .onnx file that it was made from"
        )
    computed = None if sha256 is None else hash_bytes(data)
    if computed is not None and computed.sha256 != str(sha256).strip().lower():
        raise ArtifactError(f"{path}: its SHA-256 is not the expected one, {sha256}; do not use this file")
    try:
        model = summarize_onnx(data)
        metadata = _metadata(model)
        beside = (check_data(model, source),) if model.external_data else ()
        digests = start_hashing(source).result if computed is None else lambda: computed
        return Artifact(source, metadata, digests, (*stamps, *beside), model.metadata.get(SELF_TEST_KEY))
    except OnnxError as error:
        raise ArtifactError(f"{path}: {_describe_other(source, error)}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _describe_other(source: Path | bytes, error: OnnxError) -> str:
    from ..command.file_kinds import detect_file_kind

    kind, found = ("unknown", "") if isinstance(source, bytes) else detect_file_kind(source)
    if kind == "image":
        return f"expected a model file or folder, found {found}; give a file that python -m export wrote"
    return (
        f"not an ONNX model, or a damaged one ({error}); give a file that python -m export wrote, or copy it "
        "again"
    )


def read_metadata(model: os.PathLike[str] | str | bytes) -> Metadata:
    """Return the metadata of a model file without opening the model.

    Args:
        model: the .onnx file, or its bytes.

    Raises:
        ArtifactError: as `read_artifact`, and when the file is damaged.
    """
    artifact = read_artifact(model)
    _ = artifact.sha256
    return artifact.metadata


def choose_model_file(
    path: os.PathLike[str] | str, preference: tuple[FileKind, ...] = ("int8", "float32")
) -> Path:
    """Return the model file at a path: the path itself, which need not exist, or that preferred in a folder.

    Raises:
        ArtifactError: when the folder has none of the files in `preference`.
    """
    path = Path(path)
    if not is_folder(path):
        return path
    for kind in preference:
        if os.path.lexists(candidate := path / FILE_NAMES[kind]):  # also for a link that leads nowhere
            return candidate
    names = " or ".join(FILE_NAMES[kind] for kind in preference)
    raise ArtifactError(f"{path}: no model in this folder; expected {names}, made by python -m export")


def missing_file(path: Path) -> ArtifactError:
    """Return the error for a model file that does not exist."""
    if os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises for a name too long)
        return ArtifactError(f"{path}: a link to a file that is not there; copy the model file again")
    return ArtifactError(f"{path}: there is no such model file; python -m export makes one")


def _read(path: Path) -> tuple[mmap, tuple[int, ...]]:
    try:
        if not path.exists():
            raise missing_file(path)
        with open_regular_file(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_BYTES:
                size = f"{status.st_size:,} bytes, more than an ONNX file can have ({MAX_BYTES:,})"
                raise ArtifactError(f"{path}: {size}")
            # Anonymous memory, not from the C library, which keeps more memory after it has freed so much.
            # (Mapping the file would kill the process if another one truncated it meanwhile.)
            data = mmap(-1, max(status.st_size, 1))
            file.readinto(data)
            return data, read_file_stamp(status)
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _unreadable(path: str, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path}: it cannot be read: {error.strerror or error}")


def _metadata(model: OnnxSummary) -> Metadata:
    text = model.metadata.get(METADATA_KEY)
    if text is None:
        raise ArtifactError(
            "an ONNX model, but not made by vit-edge (no metadata); make it with python -m export"
        )
    if domains := sorted(model.domains - {""}):
        raise ArtifactError(
            f"it uses operators that are not standard, of {', '.join(domains)}; export it again"
        )
    if model.functions or model.subgraphs:
        raise ArtifactError("it holds functions or subgraphs, which no exported model has; export it again")
    return Metadata.from_json(text)
