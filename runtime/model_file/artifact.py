"""A deployable model file: an .onnx that carries, as one JSON document, all that is needed to use it.

An artifact is untrusted input: it is checked before ONNX Runtime sees it, and a file that is replaced between
the check and the load is noticed. (Loading the checked bytes would cost their size again at the peak.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

from ..images.find_images import is_folder
from .data_file import check_data, open_regular, stamp_of
from .digest import Digests, digests_of, start_digests
from .metadata import METADATA_KEY, ArtifactError, Metadata, Variant
from .onnx_file import OnnxError, OnnxSummary, summarize

__all__ = ["FILE_NAMES", "METADATA_KEY", "Artifact", "ArtifactError", "Metadata", "Variant"]
__all__ += ["choose_file", "read_artifact", "read_metadata"]

MAX_BYTES = 2**31 - 1  # what a protobuf can hold
ORT_FORMAT = b"ORTM"  # at byte 4 of a file in ONNX Runtime's own format
FILE_NAMES: dict[Variant, str] = {
    "float32": "model.onnx",
    "float16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}


@dataclass(frozen=True)
class Artifact:
    """A model file that was read and found fit to run."""

    source: Path | bytes = field(repr=False)
    metadata: Metadata = field(repr=False)
    _digests: Callable[[], Digests] = field(repr=False)
    _stamps: tuple[tuple[Path, tuple[int, ...]], ...] = field(repr=False)  # of each file that was read

    @property
    def name(self) -> str:
        """The file's path, or words for bytes; for messages."""
        return named(self.source)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the .onnx file, 64 hexadecimal digits, once it is known and has shown no damage.

        It covers a file with weights, too, whose SHA-256 the .onnx file holds.

        Raises:
            ArtifactError: when the file is not the one that was written.
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

    @property
    def weights(self) -> Path | None:
        """The file beside it that holds its weights, None where they are in it."""
        return self._stamps[1][0] if len(self._stamps) > 1 else None

    def expect_unchanged(self) -> None:
        """To be called after the file was loaded.

        Raises:
            ArtifactError: when it is not the file that was checked.
        """
        for path, stamp in self._stamps:
            try:
                same = stamp_of(path.stat()) == stamp
            except OSError:
                same = False
            if not same:
                raise ArtifactError(f"{path}: it was replaced while it was opened; open it again")


def named(source: Path | str | bytes) -> str:
    """Return what messages call a model: its path, or "the model" for bytes."""
    return "the model" if isinstance(source, bytes) else str(source)


def read_artifact(source: os.PathLike[str] | str | bytes, *, sha256: str | None = None) -> Artifact:
    """Read a model file and check all that can be checked without running it.

    Damage that only its digest shows is found by `Artifact.sha256`, which waits for a thread to hash it.

    Args:
        source: the .onnx file, or its bytes.
        sha256: the digest that the file must have, when the caller knows it.

    Raises:
        ArtifactError: when it is missing, damaged, not ours, not the one asked for, or needs other files.
    """
    source = source if isinstance(source, bytes) else Path(source)
    path = named(source)
    data, stamp = _read(source) if isinstance(source, Path) else (source, ())
    stamps = ((source, stamp),) if isinstance(source, Path) else ()
    if data[4:8] == ORT_FORMAT:
        raise ArtifactError(
            f"{path}: expected an .onnx file, found ORT format, which is made for one kind of CPU and cannot "
            "be checked before it is opened; use the .onnx file that it was made from"
        )
    known = None if sha256 is None else digests_of(data)
    if known is not None and known.sha256 != str(sha256).strip().lower():
        raise ArtifactError(f"{path}: its SHA-256 is not the expected one, {sha256}; do not use this file")
    try:
        model = summarize(data)
        metadata = _metadata(model)
        beside = (check_data(model, source),) if model.external_data else ()
        digests = start_digests(source).result if known is None else lambda: known
        return Artifact(source, metadata, digests, (*stamps, *beside))
    except OnnxError as error:
        raise ArtifactError(
            f"{path}: not an ONNX model, or a damaged one ({error}); give a file that python -m export "
            "wrote, or copy it again"
        ) from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def read_metadata(model: os.PathLike[str] | str | bytes) -> Metadata:
    """Return what a model file, or its bytes, says about itself.

    Raises:
        ArtifactError: as `read_artifact`, and when the file is damaged.
    """
    artifact = read_artifact(model)
    _ = artifact.sha256
    return artifact.metadata


def choose_file(path: os.PathLike[str] | str, preference: tuple[Variant, ...] = ("int8", "float32")) -> Path:
    """The model file that `path` means: itself, or, in a folder, the first variant of `preference` there is.

    Raises:
        ArtifactError: when there is none.
    """
    path = Path(path)
    if not is_folder(path):
        return path
    for variant in preference:
        if os.path.lexists(candidate := path / FILE_NAMES[variant]):  # a link that leads nowhere is told, too
            return candidate
    names = " or ".join(FILE_NAMES[variant] for variant in preference)
    raise ArtifactError(f"{path}: no model in this folder; expected {names}, made by python -m export")


def absent(path: Path) -> ArtifactError:
    """Return the error of a model file that is not there."""
    if os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises for a name too long)
        return ArtifactError(f"{path}: a link to a file that is not there; copy the model file again")
    return ArtifactError(f"{path}: there is no such model file; python -m export makes one")


def _read(path: Path) -> tuple[mmap, tuple[int, ...]]:
    try:
        if not path.exists():
            raise absent(path)
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_BYTES:
                size = f"{status.st_size:,} bytes, more than an ONNX file can have ({MAX_BYTES:,})"
                raise ArtifactError(f"{path}: {size}")
            # Memory of its own, all of it given back before ONNX Runtime asks for its share: freed bytes of
            # this size make the C library keep more from then on. (Mapping the file itself would kill the
            # process if somebody cut it short meanwhile.)
            data = mmap(-1, max(status.st_size, 1))
            file.readinto(data)
            return data, stamp_of(status)
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
    if others := sorted(model.domains - {""}):
        raise ArtifactError(
            f"it uses operators that are not standard, of {', '.join(others)}; export it again"
        )
    if model.functions or model.subgraphs:
        raise ArtifactError("it holds functions or subgraphs, which no exported model has; export it again")
    return Metadata.from_json(text)
