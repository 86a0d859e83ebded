"""An output in parts that many processes write at once: each part whole or absent, each image in one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from ...errors import FailureError
from ...writing import OutputError
from ..resume import written_otherwise
from .part_formats import PartFormat, to_bytes
from .sources import bare, is_uri, open_uri

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_NOTE = "_run.json"
_WHOLE_WHEN_CLOSED = {
    "s3",
    "gcs",
    "abfs",
}  # object stores: a key appears with all of its bytes, or not at all


class StaleRunError(FailureError):
    """A later run has taken the output over: this one must not write to it any more."""


@dataclass(frozen=True)
class Parts:
    """The folder that a run writes its parts into. It can be sent to other machines.

    Args:
        uri: an absolute path that every machine sees, or a URI.
        form: how the parts are written.
        run: 1 for the run that began the output, one more for each that resumed it.
    """

    uri: str
    form: PartFormat
    run: int

    def write(self, number: int, columns: Mapping[str, Sequence[Any]]) -> str:
        """Write the part `number` of this run and return its name; an earlier attempt's is replaced.

        Args:
            number: number of the part: that of its chunk, from 1.
            columns: the columns of result lines, of one length.

        Raises:
            StaleRunError: if another run has resumed this output meanwhile.
            OSError: if it cannot be written.
        """
        data = to_bytes(columns, self.form)
        system, folder = _open(self.uri)
        if (found := _read_note(system, folder)["run"]) != self.run:
            raise StaleRunError(f"run {found} has taken over {bare(self.uri)} from run {self.run}")
        name = f"part-{self.run:04}-{number:09}.{self.form}"
        _put(system, folder, name, data)
        return name

    def names(self) -> list[str]:
        """List the parts that are there, of all runs, sorted."""
        system, folder = _open(self.uri)
        return [name for name in _list(system, folder) if _is_part(name)]

    def paths(self, names: Sequence[str]) -> Iterator[str]:
        """Read the `path` of every row of these parts, one part at a time."""
        import pyarrow.parquet as pq

        system, folder = _open(self.uri)
        for name in names:
            with system.open_input_file(f"{folder}/{name}") as file:
                if name.endswith(".parquet"):
                    yield from pq.read_table(file, columns=["path"]).column("path").to_pylist()
                else:
                    yield from (json.loads(line)["path"] for line in file.readall().splitlines())

    def drop_late(self, known: Sequence[str]) -> int:
        """Remove parts that an interrupted run wrote after this one had looked: it has labeled them again.

        Args:
            known: the parts of earlier runs that this run took for done.

        Returns:
            How many there were.
        """
        system, folder = _open(self.uri)
        mine = f"part-{self.run:04}-"
        late = [name for name in set(self.names()) - set(known) if not name.startswith(mine)]
        _remove(system, folder, late)
        return len(late)


def begin(
    uri: str, model: str, *, form: PartFormat | None, resume: bool, overwrite: bool, top: int = 5
) -> tuple[Parts, list[str]]:
    """Make an output ready to be written to, and say which parts it holds already.

    `_run.json` in it names the model, so that no output mixes the answers of two, and counts the runs.

    Args:
        uri: a folder, made if it is missing, or a URI.
        model: the SHA-256 of the model file.
        form: None goes on with the form that is there, and begins with Parquet.
        resume: go on with the output that is there.
        overwrite: replace the output that is there.
        top: candidates in a line.

    Raises:
        OutputError: if it holds results and neither `resume` nor `overwrite` is set, or another model,
            format or `top` wrote it, or it cannot be written to.
    """
    uri = uri if is_uri(uri) else os.path.abspath(uri)  # noqa: PTH100 (links stay as they are typed)
    try:
        system, folder = _open(uri)
        system.create_dir(folder, recursive=True)
        names = _list(system, folder)
        before = _note_or_none(system, folder) if _NOTE in names else None
        known = [name for name in names if _is_part(name)]
        if resume and known:
            form = _resumed(before, uri, model, form, top)
            known = _without_late(system, folder, before["run"] if before else 0, known)
        elif known and not overwrite:
            raise OutputError(
                f"{bare(uri)} holds results already: --resume goes on with them, --overwrite begins anew"
            )
        else:
            _remove(system, folder, known)
            known = []
        # An earlier run that was interrupted may still have processes: they stop when the number grows.
        parts = Parts(uri, form or "parquet", (before["run"] if before else 0) + 1)
        _put(system, folder, _known(parts.run), json.dumps(known).encode())
        note = {"model": model, "format": parts.form, "top": top, "run": parts.run}
        _put(system, folder, _NOTE, (json.dumps(note) + "\n").encode())
        _remove(system, folder, [name for name in names if _is_left_over(name)])
    except OSError as error:
        raise OutputError(f"{bare(uri)}: it cannot be written to: {error.strerror or error}") from error
    return parts, known


def _resumed(
    note: dict[str, Any] | None, uri: str, model: str, form: PartFormat | None, top: int
) -> PartFormat:
    if note is None:
        raise OutputError(
            f"{bare(uri)}/{_NOTE} is gone or damaged, so it cannot be resumed; --overwrite begins anew"
        )
    found, written = note["model"], note["format"]
    if found != model:
        raise OutputError(
            f"another model wrote {bare(uri)} (SHA-256 {found}, this one {model}); use a new --output"
        )
    if form not in (None, written):
        raise OutputError(f"{bare(uri)} is {written}, found --format {form}; leave --format out to go on")
    if note["top"] != top:
        raise written_otherwise(bare(uri), "top", note["top"], top)
    return cast(PartFormat, written)


def _without_late(system: FileSystem, folder: str, run: int, names: list[str]) -> list[str]:
    """Remove what runs before the last one wrote after it had looked: it has labeled these images again."""
    try:
        with system.open_input_file(f"{folder}/{_known(run)}") as file:
            looked = set(json.loads(file.readall()))
    except FileNotFoundError:
        raise OutputError(
            f"{folder}/{_known(run)} is gone, so it cannot be resumed; --overwrite begins anew"
        ) from None
    late = [name for name in names if name < f"part-{run:04}-" and name not in looked]
    _remove(system, folder, late)
    return sorted(set(names) - set(late))


def _known(run: int) -> str:
    return f"_known-{run:04}.json"


def _is_left_over(name: str) -> bool:
    return name.startswith("_known-") or (name.startswith((".part-", "._")) and name.endswith(".tmp"))


def _note_or_none(system: FileSystem, folder: str) -> dict[str, Any] | None:
    try:
        note = _read_note(system, folder)
    except (OSError, ValueError):
        return None
    whole = isinstance(note, dict) and note.get("format") in get_args(PartFormat)
    counts = all(isinstance(note.get(name), int) for name in ("run", "top")) if whole else False
    return note if counts and isinstance(note.get("model"), str) else None


def _open(uri: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import LocalFileSystem

    system, folder = open_uri(uri) if is_uri(uri) else (LocalFileSystem(), uri)
    return system, folder.rstrip("/")


def _list(system: FileSystem, folder: str) -> list[str]:
    from pyarrow.fs import FileSelector

    return sorted(info.base_name for info in system.get_file_info(FileSelector(folder)) if info.is_file)


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith((".parquet", ".jsonl"))


def _remove(system: FileSystem, folder: str, names: Sequence[str]) -> None:
    for name in names:
        system.delete_file(f"{folder}/{name}")


def _read_note(system: FileSystem, folder: str) -> Any:
    with system.open_input_file(f"{folder}/{_NOTE}") as file:
        return json.loads(file.readall())


def _put(system: FileSystem, folder: str, name: str, data: bytes) -> None:
    """Write a file so that no reader, and no crash, ever leaves a half of it under its name."""
    aside = f"{folder}/.{name}.{os.urandom(4).hex()}.tmp"
    if system.type_name == "local":
        with Path(aside).open("xb") as local:  # follows no link
            local.write(data)
            local.flush()
            os.fsync(local.fileno())
        Path(aside).replace(f"{folder}/{name}")
        return
    direct = system.type_name in _WHOLE_WHEN_CLOSED
    with system.open_output_stream(f"{folder}/{name}" if direct else aside) as file:
        file.write(data)
    if not direct:
        system.move(aside, f"{folder}/{name}")
