"""A folder of models: one numbered folder per model, the file `current`, and a journal.

    FOLDER/3/model.int8.onnx, FOLDER/3/model.int8.onnx.sig    the model before
    FOLDER/4/…                                                the current model
    FOLDER/current                                            "4"
    FOLDER/journal.jsonl                                      one line per change of `current`

Files and renames alone, no links, so that any file system holds it. A numbered folder appears whole, by a
rename; `current` is replaced by a rename, too. No number is used twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..model_file.artifact import FILE_NAMES, Artifact, ArtifactError, choose_model_file, read_artifact
from ..model_file.pointer import CURRENT, read_current
from ..writing import temporary_folder, write_atomically
from .signature import read_signature, signature_path

JOURNAL = "journal.jsonl"
_MOST_LINES = 1000  # of the journal; older ones are dropped
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model file that is whole: its digest was compared."""

    artifact: Artifact
    file: Path
    version: int  # of its signature, which was not verified; 0: none
    signature: bytes | None  # content of the signature file

    def describe(self) -> str:
        """Return the file, the version and the start of the SHA-256."""
        version = f", version {self.version}" if self.version else ""
        return f"{self.file.name}{version}, SHA-256 {self.artifact.sha256[:12]}…"


def read_model(file: Path) -> Model:
    """Read a model file and its signature, which need not be there.

    Args:
        file: the .onnx file.

    Returns:
        The model.

    Raises:
        ArtifactError: when it is damaged, or its signature is of another file.
    """
    artifact, path = read_artifact(file), signature_path(file)
    if not path.exists():
        _ = artifact.sha256
        return Model(artifact, file, 0, None)
    signature = read_signature(file, None)
    if signature.sha256 != artifact.sha256:
        raise ArtifactError(f"{path}: the signature of another file; copy both files again")
    return Model(artifact, file, signature.version, path.read_bytes())


def read_installed(folder: Path, number: int) -> Model:
    """Return one model of a folder; arguments are as for the others here, errors those of `read_model`."""
    return read_model(choose_model_file(folder / str(number), tuple(FILE_NAMES)))


def find_current(folder: Path) -> int | None:
    """Return the number of the current model; None where `current` is missing or damaged."""
    try:
        return read_current(folder)
    except ArtifactError:
        return None


def list_numbers(folder: Path) -> list[int]:
    """Return the numbers of the models in a folder, in order."""
    names = (each.name for each in folder.iterdir() if not each.is_symlink())
    numbers = (int(name) for name in names if name.isascii() and name.isdecimal())
    # Without a model it is of somebody else, such as images of a class in a folder that was named by mistake.
    return sorted(number for number in numbers if _holds_model(folder / str(number)))


def _holds_model(place: Path) -> bool:
    return any((place / name).is_file() for name in FILE_NAMES.values())


def choose_number(folder: Path) -> int:
    """Return the number of the next model: larger than all that the folder and its journal know."""
    known = [each["model"] for each in read_journal(folder) if type(each.get("model")) is int]
    return 1 + max([*list_numbers(folder), *known, find_current(folder) or 0], default=0)


def list_rolled_back(folder: Path) -> set[Any]:
    """Return the SHA-256 of the models that a rollback left, as the journal says."""
    lines = read_journal(folder)
    left = [each.get("before") for each in lines if each.get("event") == "rollback"]
    return {
        each.get("sha256") for each in lines if each.get("event") == "install" and each.get("model") in left
    }


def list_kept(folder: Path) -> list[int]:
    """Return the numbers of the models to keep: the current one, and the one before it."""
    numbers, current = list_numbers(folder), find_current(folder)
    if current is None:
        return numbers
    return [each for each in numbers if each <= current][-2:]


def remove_others(folder: Path, kept: Collection[int]) -> None:
    """Remove all models but some; each disappears by a rename, so that none is there in part."""
    others = [each for each in list_numbers(folder) if each not in kept]
    with temporary_folder(folder) as aside:
        for number in others:
            (folder / str(number)).rename(aside / str(number))


def switch(folder: Path, number: int, event: str, **facts: Any) -> None:
    """Make a model the current one, and note it in the journal.

    Args:
        folder: the folder of models.
        number: of the model, which is there.
        event: what was done, for the journal.
        facts: more of it, as JSON values.

    Raises:
        OutputError: when `current` cannot be written; it is as it was.
    """
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, "model": number}
    line |= {"before": find_current(folder), **facts}
    write_atomically(folder / CURRENT, f"{number}\n".encode())
    lines = [*read_journal(folder), line][-_MOST_LINES:]
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
    try:
        write_atomically(folder / JOURNAL, text.encode())
    except InputError as error:  # the model is the current one all the same
        _log.warning("not in the journal: %s", error)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the journal that are JSON objects, the oldest first."""
    try:
        texts = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(json.loads(text))
        except ValueError:  # an editor's work; it is dropped with the next line
            continue
    return [each for each in found if isinstance(each, dict)]


def read_status(folder: Path) -> dict[str, Any]:
    """Return what is installed, as JSON values: `current`, `error` and `previous`.

    Args:
        folder: the folder of models.

    Returns:
        `current` is None, and `error` says why, where no current model can be opened.
    """
    status: dict[str, Any] = {"folder": str(folder), "current": None, "error": None, "previous": None}
    try:
        number = read_current(folder)
        if number is None:
            raise ArtifactError(
                f"{folder}: no model is installed here; vit-edge install MODEL --into {folder}"
            )
        model = read_installed(folder, number)
    except ArtifactError as error:
        return status | {"error": str(error)}
    events = [each.get("time") for each in read_journal(folder) if each.get("model") == number]
    metadata = model.artifact.metadata
    current = {
        "model": number,
        "file": str(model.file),
        "variant": metadata.variant,
        "sha256": model.artifact.sha256,
        "version": model.version or None,
        "signed": model.signature is not None,
        "labels": len(metadata.labels),
        "since": events[-1] if events else None,
    }
    earlier = [each for each in list_numbers(folder) if each < number]
    return status | {"current": current, "previous": earlier[-1] if earlier else None}
